"""GPUs and the network between them: what ranks send each other in a step, and what time arithmetic takes.

Bytes that a rank sends in a step, P parameters whose gradients are 4 bytes on the wire and whose weights are w, in m
micro-batches on N ranks, in rings (Rajbhandari et al., "ZeRO", SC 2020, section 7, with what DeepSpeed 0.19 makes of
it); each times (N - 1) / N:

    stage 0      2 x 4 P              gradients are summed everywhere, once a step
    stage 1      2 x 4 P + w P        and each rank's new weights go to all
    stage 2      2 m x 4 P + w P      gradients of every micro-batch
    stage 3      m x 4 P + 2 m w P    weights are gathered for forward and for backward, gradients go to their owner
"""

from dataclasses import dataclass
from typing import Literal

PEAK = {"bf16": 775.0, "fp32": 67.0}
"""TFLOP/s of one H100: bf16 as measured on products of 8192^3, fp32 without TF32 from its data sheet."""
NODE = 8
NETWORK = {"in a node": 450.0, "between nodes": 400.0}
"""GB/s that a GPU passes on in rings, by data sheets: NVLink of an H100 one way, and eight adapters of 400 Gbit/s a
node, which NCCL's rings use together, each crossing to the next node by another one."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machine to plan for.

    Attributes:
        gpus: ranks N.
        gpu_memory: GB (10^9 bytes) of one GPU.
        peak: TFLOP/s of one GPU at the run's precision; None for that of an H100.
        utilisation: share of the peak that is reached; that of the base size in bf16 on one H100 (docs/performance.md)
            unless another is known.
        network: GB/s that a GPU passes on in rings, the bus bandwidth of nccl-tests; between nodes about what all
            adapters of a node do together. None for NVLink up to 8 GPUs and 8 adapters of 400 Gbit/s a node beyond.

    """

    gpus: int
    gpu_memory: float = 80.0
    peak: float | None = None
    utilisation: float = 0.33
    network: float | None = None

    def peak_at(self, precision: Literal["fp32", "bf16"]) -> float:
        """TFLOP/s of one GPU."""
        return self.peak or PEAK[precision]

    @property
    def network_rate(self) -> float:
        """Bytes that a GPU sends in a second."""
        return 1e9 * (self.network or NETWORK["in a node" if self.gpus <= NODE else "between nodes"])


def sent_bytes(parameters: int, weight: int, stage: int, micro_batches: int, ranks: int) -> float:
    """Bytes that one rank sends in an optimiser step.

    Args:
        parameters: trained, P.
        weight: bytes of a weight, w.
        stage: of ZeRO.
        micro_batches: of a rank in a step, m.
        ranks: N.

    """
    gathered = {0: 0, 1: 1, 2: 1, 3: 2 * micro_batches}[stage] * weight
    reduced = {0: 2, 1: 2, 2: 2 * micro_batches, 3: micro_batches}[stage] * 4
    return (gathered + reduced) * parameters * (ranks - 1) / ranks

"""The cluster to plan for, and what ranks send each other in a step.

Bytes that a rank sends in an optimiser step over rings, each times (N - 1) / N (Rajbhandari et al., "ZeRO", SC 2020,
section 7, as DeepSpeed 0.19 implements it). P is the number of trained parameters, with 4-byte gradients and w-byte
weights; m is the number of micro-batches on each of N ranks:

    stage 0      2 x 4 P              gradients are summed over ranks, once a step
    stage 1      2 x 4 P + w P        also, each rank sends its updated weights to all
    stage 2      2 m x 4 P + w P      gradients are summed in every micro-batch
    stage 3      m x 4 P + 2 m w P    weights are gathered for forward and backward, gradients sent to their owner
"""

from dataclasses import dataclass
from typing import Literal

PEAK = {"bf16": 775.0, "fp32": 67.0}
"""TFLOP/s of one H100: bf16 as measured on 8192^3 products, fp32 (without TF32) from its data sheet."""
NODE = 8
NETWORK = {"in a node": 450.0, "between nodes": 400.0}
"""GB/s that a GPU passes on in a ring, from data sheets: an H100's NVLink in one direction; eight 400 Gbit/s adapters a
node, all used at once, since each of NCCL's rings crosses to the next node over another one."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machine to plan for.

    Attributes:
        gpus: number of GPUs, one rank each.
        gpu_memory: memory of one GPU in GB (10^9 bytes).
        peak: peak TFLOP/s of one GPU at the run's precision; None for an H100's.
        utilisation: share of the peak that training reaches; the default was measured on one H100 at base size in bf16
            (docs/performance.md).
        network: GB/s that a GPU passes on in a ring, the bus bandwidth of nccl-tests; between nodes, about that of all
            adapters of a node together. None for `NETWORK`.

    """

    gpus: int
    gpu_memory: float = 80.0
    peak: float | None = None
    utilisation: float = 0.33
    network: float | None = None

    def peak_at(self, precision: Literal["fp32", "bf16"]) -> float:
        """Peak TFLOP/s of one GPU."""
        return self.peak or PEAK[precision]

    @property
    def network_rate(self) -> float:
        """Bytes per second that a GPU sends."""
        return 1e9 * (self.network or NETWORK["in a node" if self.gpus <= NODE else "between nodes"])


def sent_bytes(parameters: int, weight: int, stage: int, micro_batches: int, ranks: int) -> float:
    """Bytes that one rank sends in an optimiser step.

    Args:
        parameters: number of trained parameters, P.
        weight: bytes per weight, w.
        stage: ZeRO stage.
        micro_batches: micro-batches per rank and step, m.
        ranks: number of ranks, N.

    """
    gathered = {0: 0, 1: 1, 2: 1, 3: 2 * micro_batches}[stage] * weight
    reduced = {0: 2, 1: 2, 2: 2 * micro_batches, 3: micro_batches}[stage] * 4
    return (gathered + reduced) * parameters * (ranks - 1) / ranks

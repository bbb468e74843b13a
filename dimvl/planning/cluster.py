"""The GPUs to plan for."""

from dataclasses import dataclass
from typing import Literal

PEAK = {"bf16": 775.0, "fp32": 67.0}
"""TFLOP/s of one H100: bf16 as measured on 8192^3 products, fp32 (without TF32) from its data sheet."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machine to plan for.

    Attributes:
        gpus: number of GPUs, one rank each.
        gpu_memory: memory of one GPU in GB (10^9 bytes).
        peak: peak TFLOP/s of one GPU at the run's precision; None for an H100's.
        utilisation: share of the peak that training reaches; the default was measured on one H100 at base size in bf16
            (docs/performance.md).

    """

    gpus: int
    gpu_memory: float = 80.0
    peak: float | None = None
    utilisation: float = 0.33

    def peak_at(self, precision: Literal["fp32", "bf16"]) -> float:
        """Peak TFLOP/s of one GPU."""
        return self.peak or PEAK[precision]

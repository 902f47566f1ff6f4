"""GPUs and how long a step might take on them: published peaks times an assumed efficiency."""

from typing import NamedTuple


class Gpu(NamedTuple):
    """Dense bf16 FLOP/s as the vendor publishes them, and the memory that PyTorch finds there."""

    flops_per_second: float
    gib: float


GPUS = {
    "h100": Gpu(989e12, 79.2),
    "h200": Gpu(989e12, 139.8),
    "b200": Gpu(2250e12, 178.4),
    "a100": Gpu(312e12, 79.3),
    "a100-40gb": Gpu(312e12, 39.4),
    "l40s": Gpu(362e12, 44.4),
    "rtx4090": Gpu(165e12, 23.6),
}

# Share of the peak that a whole step reaches. A guess in the range that trainers report for models
# of 7 to 8 billion parameters on these GPUs; nothing here was measured.
EFFICIENCY = 0.4


def step_seconds(gpu: str, flops: int, efficiency: float = EFFICIENCY) -> float:
    """Estimate, not a measurement: FLOPs over `efficiency` times the published peak."""
    return flops / (GPUS[gpu].flops_per_second * efficiency)

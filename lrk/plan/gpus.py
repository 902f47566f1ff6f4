"""GPUs and how long a step might take on them: published peaks times an assumed efficiency."""

from typing import NamedTuple


class Gpu(NamedTuple):
    """As the vendor publishes it, but for the memory, which is what PyTorch finds there.

    Attributes:
        flops_per_second: dense, bf16.
        gib: of memory.
        link: bytes/s in each direction to the others of a node: NVLink 4 (H100, H200), 5 (B200) and
            3 (A100), else PCIe 4 x 16.
    """

    flops_per_second: float
    gib: float
    link: float


GPUS = {
    "h100": Gpu(989e12, 79.2, 450e9),
    "h200": Gpu(989e12, 139.8, 450e9),
    "b200": Gpu(2250e12, 178.4, 900e9),
    "a100": Gpu(312e12, 79.3, 300e9),
    "a100-40gb": Gpu(312e12, 39.4, 300e9),
    "l40s": Gpu(362e12, 44.4, 32e9),
    "rtx4090": Gpu(165e12, 23.6, 32e9),
}

# A node as the vendors sell it: 400 Gb/s of InfiniBand for each of eight GPUs, all of which a ring
# through several nodes uses. A GPU without such a network has it no better than its node.
GPUS_PER_NODE = 8
NETWORK = 50e9

# Share of the published bandwidth that a collective of many MiB reaches. A guess, as is the next.
LINK_EFFICIENCY = 0.75

# Share of the peak that a whole step reaches. A guess in the range that trainers report for models
# of 7 to 8 billion parameters on these GPUs; nothing here was measured.
EFFICIENCY = 0.4


def step_seconds(gpu: str, flops: int, efficiency: float = EFFICIENCY) -> float:
    """Estimate, not a measurement: FLOPs over `efficiency` times the published peak."""
    return flops / (GPUS[gpu].flops_per_second * efficiency)


def ring_seconds(gpu: str, sent: int, processes: int) -> float:
    """Estimate, not a measurement, of collectives in which each process sends `sent` bytes.

    Of W bytes in all a process sends (n - 1) / n. Where m nodes take part, each receives
    (m - 1) / m of W over its whole network, once for all its GPUs. The slower of both counts;
    latency, which grows with n, is left out.
    """
    inside = sent / GPUS[gpu].link
    nodes = -(-processes // GPUS_PER_NODE)
    whole = sent * processes / max(processes - 1, 1)
    between = whole * (nodes - 1) / nodes / (GPUS_PER_NODE * NETWORK)
    return max(inside, between) / LINK_EFFICIENCY

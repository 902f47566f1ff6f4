"""Largest error of a rotated unit vector at far positions, of each implementation.

    python -m bench.rope_error

Truth is the float64 frequency as given times the position, in integer arithmetic of 400 bits.
Kernels run on a GPU if there is one, else in Triton's interpreter. That has no arithmetic in
bfloat16 such as Liger's: there Liger gets its bfloat16 tables and values widened to float32, which
flatters it.
"""

import argparse
import math
import os
from collections.abc import Callable
from importlib.util import find_spec

import mpmath
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from lrk.kernels.rope import rope, rope_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
POSITIONS = [1_000, 100_000, 130_000, 1_000_000, 1_000_000_000, 2**31 - 1]
THETA, HEAD_DIM = 5e5, 128  # Llama-3-8B
BITS = 400
with mpmath.workprec(BITS + 64):
    _INVERSE_TWO_PI = int(mpmath.floor(mpmath.ldexp(1 / (2 * mpmath.pi), BITS)))

Rotate = Callable[[Tensor, Tensor], Tensor]


def exact_angles(positions: list[int], inv_freq: list[float]) -> Tensor:
    """Angles in [0, 2 pi), float64 (S, R/2): rounded once, from exact fractions of a turn."""

    def angle(position: int, frequency: float) -> float:
        numerator, denominator = frequency.as_integer_ratio()
        turns = position * numerator * _INVERSE_TWO_PI // denominator % (1 << BITS)
        return 2 * math.pi * ((turns >> (BITS - 64)) / 2**64)

    return torch.tensor(
        [[angle(p, f) for f in inv_freq] for p in positions], dtype=torch.float64, device=DEVICE
    )


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    first, second = x.double().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def frequencies() -> Tensor:
    return THETA ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64, device=DEVICE) / HEAD_DIM)


def implementations() -> dict[str, Rotate]:
    """Each takes x (1, 1, S, D) and position_ids (1, S)."""
    inv_freq = frequencies()
    config = LlamaConfig(
        head_dim=HEAD_DIM, rope_parameters={"rope_type": "default", "rope_theta": THETA}
    )
    stock = LlamaRotaryEmbedding(config).to(DEVICE)
    cast = LlamaRotaryEmbedding(config).to(DEVICE, torch.bfloat16)
    rows = {
        "lrk, kernel": lambda x, p: rope_triton(x, x, p, inv_freq)[0],
        "lrk, CPU": lambda x, p: rope(x.cpu(), x.cpu(), p.cpu(), inv_freq.cpu())[0].to(DEVICE),
        "transformers": lambda x, p: apply_rotary_pos_emb(x, x, *stock(x, p))[0],
        "transformers after model.to(bfloat16)": lambda x, p: apply_rotary_pos_emb(
            x, x, *cast(x, p)
        )[0],
    }
    if find_spec("liger_kernel"):
        from liger_kernel.ops.rope import rope_forward

        def liger(x: Tensor, position_ids: Tensor) -> Tensor:
            tables = stock(x, position_ids)
            dtype = x.dtype if DEVICE.type == "cuda" else torch.float32
            q, k = x.to(dtype, copy=True), x.to(dtype, copy=True)  # it rotates in place
            return rope_forward(q, k, *(table.to(dtype) for table in tables))[0].to(x.dtype)

        rows["Liger-Kernel"] = liger
    return rows


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(HEAD_DIM, generator=generator), dim=0).to(DEVICE)
    x = x.expand(1, len(POSITIONS), 1, -1).contiguous().transpose(1, 2)
    position_ids = torch.tensor([POSITIONS], device=DEVICE)
    angles = exact_angles(POSITIONS, frequencies().tolist())
    print("| dtype | implementation | " + " | ".join(f"{p:,}" for p in POSITIONS) + " |")
    print("|---|---" + "|---" * len(POSITIONS) + "|")
    for dtype in (torch.float32, torch.bfloat16):
        value = x.to(dtype)
        truth = rotated(value, angles)
        for name, rotate in implementations().items():
            error = (rotate(value, position_ids).double() - truth).abs().amax(dim=(0, 1, 3))
            cells = " | ".join(f"{e:.1e}" for e in error.tolist())
            print(f"| {str(dtype).removeprefix('torch.')} | {name} | {cells} |")


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m bench.rope_error",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    main()

"""Attention in Triton's interpreter among guard pages; prints each case before it runs.

python -m tests.kernels.attention.guarded [--seeds N]
"""

import argparse
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from lrk.kernels.attention import attention_triton, split_kv, tiles
from lrk.kernels.attention.tiles import Tiles
from tests.kernels.attention.conftest import outputs_and_gradients, random_case

# Whole pages, so that tensors end where their pages do.
HEADS, LENGTH, HEAD_DIM = 2, 64, 32
FEW = 16  # queries
STEPS = torch.arange(LENGTH)


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Boundaries that leave a row without keys or tokens, or that no row of the tensors has."""
    window = {"window": 16, "window_position_ids": STEPS[None]}
    ends, of_keys = torch.tensor([0, 10, 10, 64]), torch.tensor([0, 0, 10, 64])
    yield "a first document without keys", {"cu_seqlens": ends, "cu_seqlens_k": of_keys, **window}
    of_keys = torch.tensor([0, 10, 64, 64])
    yield "a last document without keys", {"cu_seqlens": ends, "cu_seqlens_k": of_keys, **window}
    yield "a row too many", {"cu_seqlens": torch.tensor([0, 64, 128])}
    yield "a part of a row too many", {"cu_seqlens": torch.tensor([0, 10, 64, 70])}
    yield "negative ends", {"cu_seqlens": torch.tensor([-70, -10, 64])}
    yield "no limit", {"window": 2**31 - 1}
    far = STEPS[None] + 2**31 - LENGTH
    yield "the last positions", {"window": 2**31 - 1, "window_position_ids": far}
    yield "more valid keys than keys", {"kv_lengths": torch.tensor([70]), "q_offset": 0}
    yield "fewer valid keys than none", {"kv_lengths": torch.tensor([-3]), "q_offset": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=0, help="random cases beside the known ones")
    seeds = parser.parse_args().seeds
    small = Tiles(32, 32, 4, 1)
    with mock.patch.object(tiles, "choose", return_value=small):
        for name, arguments in cases():
            print(name, flush=True)
            q, k, v = torch.randn(3, 1, HEADS, LENGTH, HEAD_DIM).unbind()
            q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
            out, lse = attention_triton(q, k, v, return_lse=True, **arguments)
            torch.autograd.grad(out.sum() + lse.sum(), (q, k, v))
        for seed in range(seeds):
            print(f"seed {seed}", flush=True)
            results = outputs_and_gradients(attention_triton, random_case(seed, max_length=130))
            assert all(x.isfinite().all() for x in results.values()), f"seed {seed}"
    with (
        mock.patch.object(split_kv, "MIN_LENGTH", LENGTH),
        mock.patch.object(split_kv, "MIN_SHARE", 16),
    ):
        for name, arguments in cases():
            print(f"few queries, {name}", flush=True)
            if "cu_seqlens" in arguments:
                arguments.setdefault("cu_seqlens_k", arguments["cu_seqlens"])
            q = torch.randn(1, HEADS, FEW, HEAD_DIM)
            k, v = torch.randn(2, 1, HEADS, LENGTH, HEAD_DIM).unbind()
            attention_triton(q, k.clone(), v.clone(), **arguments)
    print("done", flush=True)


if __name__ == "__main__":
    main()

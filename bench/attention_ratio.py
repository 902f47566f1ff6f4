"""Attention beside PyTorch's own on a CPU: one causal document, and eight packed ones.

    python -m bench.attention_ratio

The two take turns in one process, in processor time of one thread, and medians are compared: that
holds still on a machine which does other work too. A CPU's figures say nothing about a GPU's.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lrk.kernels.attention import attention

ROUNDS = 7
# (tokens, query heads, key heads, head dimension, documents)
SHAPES = [(2048, 9, 3, 64, 1), (4096, 9, 3, 64, 1), (2048, 32, 8, 128, 1), (8192, 9, 3, 64, 8)]


def main() -> None:
    torch.set_num_threads(1)
    print(
        "| tokens | heads | head dim | documents | forward | backward |\n|---|---|---|---|---|---|"
    )
    for tokens, heads, kv_heads, head_dim, documents in SHAPES:
        forward, backward = ratios(tokens, heads, kv_heads, head_dim, documents)
        print(
            f"| {tokens:,} | {heads}/{kv_heads} | {head_dim} | {documents} | {forward:.2f} "
            f"| {backward:.2f} |",
            flush=True,
        )


def ratios(
    tokens: int, heads: int, kv_heads: int, head_dim: int, documents: int
) -> tuple[float, float]:
    """Time of lrk over that of PyTorch, forward and backward."""
    q, k, v = (
        torch.randn(1, tokens, h, head_dim).transpose(1, 2).requires_grad_()
        for h in (heads, kv_heads, kv_heads)
    )
    gradient = torch.randn(1, tokens, heads, head_dim).transpose(1, 2)
    index = torch.arange(tokens) // (tokens // documents)
    mask = (index[:, None] == index).tril() if documents > 1 else None
    ends = torch.arange(0, tokens + 1, tokens // documents) if documents > 1 else None

    def torch_attention() -> Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )

    def lrk_attention() -> Tensor:
        return attention(q, k, v, cu_seqlens=ends)

    def backward(out: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True)

    with torch.no_grad():
        forward_ratio = _ratio(lrk_attention, torch_attention)
    return forward_ratio, _ratio(backward(lrk_attention()), backward(torch_attention()))


def _ratio(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for call, times in zip((ours, theirs), seconds, strict=True):
            begin = time.process_time()
            call()
            times.append(time.process_time() - begin)
    return statistics.median(seconds[0]) / statistics.median(seconds[1])


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m bench.attention_ratio",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    main()

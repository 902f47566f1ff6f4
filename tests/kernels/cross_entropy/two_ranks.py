"""One of two processes that share a vocabulary: `two_ranks.py RANK FILE`, by test_parallel.py."""

import sys

import torch
import torch.distributed as dist

from lrk.kernels.cross_entropy import linear_cross_entropy, vocab_parallel_linear_cross_entropy

VOCAB, ROWS, WIDTH = 37, 19, 11  # the second rank's last row is padding
OPTIONS = [
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "none", "z_loss": 0.05},
    {"softcap": 2.0, "num_items": 7},
    {"return_lse": True, "chunk_tokens": 3},
]


def main(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    inputs = {
        "hidden": torch.randn(2, 6, WIDTH, dtype=torch.float64),
        "weight": torch.randn(2 * ROWS, WIDTH, dtype=torch.float64),
        "bias": torch.randn(2 * ROWS, dtype=torch.float64),
        "token_weight": torch.rand(2, 6, dtype=torch.float64),
    }
    labels = torch.randint(0, VOCAB, (2, 6))
    labels[0, :2] = -100
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    for options in OPTIONS:
        whole = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        rows = {name: whole[name][:VOCAB] for name in ("weight", "bias")}
        expected = linear_cross_entropy(labels=labels, **(whole | rows), **options)
        shard = {
            name: (tensor[mine] if name in rows else tensor).clone().requires_grad_()
            for name, tensor in inputs.items()
        }
        found = vocab_parallel_linear_cross_entropy(
            labels=labels, vocab_size=VOCAB, **shard, **options
        )
        torch.testing.assert_close(found, expected)
        for outputs in (expected, found):
            parts = outputs if isinstance(outputs, tuple) else (outputs,)
            sum((part * part).sum() for part in parts).backward()
        for name, leaf in shard.items():
            gradient = whole[name].grad[mine] if name in rows else whole[name].grad
            torch.testing.assert_close(leaf.grad, gradient, msg=f"{name} {options}")

    refused = False
    try:
        vocab_parallel_linear_cross_entropy(labels=labels, vocab_size=99, **shard)
    except ValueError as error:
        refused = "vocab_size 99 does not fit 2 ranks of 19 rows" in str(error)
    assert refused
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

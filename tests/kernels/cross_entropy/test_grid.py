"""A randomised grid: shapes, dtypes and options drawn by the case's number.

Not too small, or plain PyTorch may round the few numbers of a case in the right direction.
"""

import random

import pytest
import torch

from lrk.kernels.cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
    linear_cross_entropy_triton,
)
from lrk.testing import OUTPUT_FACTOR, max_error

NUM_CASES = 240
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (tokens, vocabulary, hidden size)
SHAPES = [(252, 507, 123), (64, 9, 5), (18, 4097, 8), (255, 1000, 64), (65, 33, 129)]


def draw(number: int) -> dict:
    """Arguments of `make_case`."""
    dice = random.Random(number)
    tokens, vocab, width = dice.choice(
        [*SHAPES, (dice.randint(12, 260), dice.randint(8, 1100), dice.randint(5, 140))]
    )
    rows = dice.choice([row for row in (1, 2, 3) if tokens % row == 0])
    reduction = dice.choice(["mean", "sum", "none"])
    num_items = dice.choice([None, tokens + 3, torch.tensor(2.5 * tokens)])
    return {
        "shape": (rows, tokens // rows),
        "vocab": vocab,
        "width": width,
        "dtype": dice.choice(DTYPES),
        "with_bias": dice.random() < 0.4,
        "with_token_weight": dice.random() < 0.5,
        "seed": number,
        "reduction": reduction,
        "num_items": num_items if reduction == "mean" else None,
        "label_smoothing": dice.choice([0.0, 0.0, 0.1, 1.0]),
        "z_loss": dice.choice([0.0, 0.0, 1e-4, 0.1]),
        "softcap": dice.choice([None, None, 1.5, 30.0]),
        "return_lse": dice.random() < 0.3,
        "chunk_tokens": dice.choice([None, None, 1 + dice.randrange(tokens)]),
        "ignore_index": dice.choice([-100, None, 0]),
    }


@pytest.mark.parametrize("number", range(NUM_CASES))
def test_grid(number, make_case):
    case = make_case(**draw(number))
    case.check(linear_cross_entropy)


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=pytest.mark.slow if n % 4 else ()) for n in range(NUM_CASES)]
)
def test_grid_in_triton(number, make_case, device):
    """The same draws; fewer tokens in the interpreter, which takes milliseconds for each."""
    arguments = draw(number)
    if device.type == "cpu":
        rows, columns = arguments["shape"]
        arguments["shape"] = (rows, min(columns, 18 // rows))
    case = make_case(**arguments)
    case.check(linear_cross_entropy_triton)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scalar_losses_over_the_whole_grid(dtype, make_case):
    """One number is exact by luck, so that losses are judged together: mean relative errors."""
    ours, plain = 0.0, 0.0
    for number in range(NUM_CASES):
        arguments = draw(number) | {"dtype": dtype, "return_lse": False}
        if arguments["reduction"] == "none":
            continue
        case = make_case(**arguments)
        truth = case.loss(linear_cross_entropy_reference, torch.float64)
        scale = truth.abs().item() or 1.0
        ours += max_error(case.loss(linear_cross_entropy, dtype), truth) / scale
        plain += max_error(case.loss(linear_cross_entropy_reference, dtype), truth) / scale
    assert ours <= OUTPUT_FACTOR * plain
    if dtype != torch.float32:
        assert ours < 0.1 * plain  # a stock head rounds its logits to 16 bits

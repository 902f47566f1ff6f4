"""What is priced by formula equals what the operations' own code allocates."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lrk.kernels.cross_entropy import chunks
from lrk.plan.ledger import TEMPORARY, Ledger
from lrk.plan.prices import visible_pairs
from lrk.plan.workspace import loss_bytes_on_gpu


def product_as_on_a_gpu(a, b, out):
    """It widens as it multiplies, without copies of its operands."""
    assert (a.shape[0], b.shape[1]) == tuple(out.shape)
    return out


def add_as_on_a_gpu(total, a, b, beta):
    return total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("needs", [(True, True, False), (True, False, False)])
@pytest.mark.parametrize(
    ("tokens", "chunk"),
    [(300, None), (300, 64), (65, 64), (129, 64), (100, 64), (70, 64), (33, 64)],
)
def test_loss_on_a_gpu(monkeypatch, dtype, needs, tokens, chunk):
    """`chunks.run` on fake tensors, with a GPU's products in place of the CPU's."""
    monkeypatch.setattr(chunks, "product", product_as_on_a_gpu)
    monkeypatch.setattr(chunks, "add_product", add_as_on_a_gpu)

    def row_pass(logits, *rest):
        return logits.view(rest[-1])[:, : logits.shape[1]]

    count = tokens - 1
    ledger = Ledger(lambda *_: (None, 0))
    with FakeTensorMode(), torch.no_grad():
        hidden = torch.empty(tokens, 32, dtype=dtype)
        weight = torch.empty(150, 32, dtype=dtype)
        ledger.hold([hidden, weight], TEMPORARY)
        with ledger:
            index, labels = (torch.empty(count, dtype=torch.int64) for _ in range(2))
            share = torch.ones(count)
            pull = chunks.Pull(share, -share, None)
            kept = chunks.Kept(index, labels)
            _, gradients = chunks.run(
                row_pass, hidden, weight, None, kept, None, chunk, dtype, pull=pull, needs=needs
            )
        results = [gradient for gradient in gradients if gradient is not None]
        sizes = sum(x.numel() * x.element_size() for x in (hidden, weight, *results))
        peak = max(usage.total for usage in ledger.usage())
        assert loss_bytes_on_gpu(tokens, hidden, weight, dtype, chunk, needs) == peak - sizes


def test_visible_pairs():
    for q_length, k_length in itertools.product(range(1, 7), range(1, 9)):
        if q_length > k_length:
            continue
        for window in (None, 1, 2, 5, 20):
            seen = sum(
                key <= query + k_length - q_length
                and (window is None or query + k_length - q_length - key < window)
                for query in range(q_length)
                for key in range(k_length)
            )
            assert visible_pairs(q_length, k_length, True, window) == seen
        assert visible_pairs(q_length, k_length, False, None) == q_length * k_length

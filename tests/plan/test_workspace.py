"""What is priced by formula equals what the operations' own code allocates."""

import itertools
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lrk.kernels.cross_entropy import chunks
from lrk.kernels.cross_entropy.kl import divergence
from lrk.plan.ledger import TEMPORARY, Ledger
from lrk.plan.prices import prices_on, visible_pairs
from lrk.plan.workspace import Device, divergence_bytes_on_gpu, loss_bytes_on_gpu


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
    [
        *((300, None), (300, 64), (65, 64), (129, 64), (100, 64), (70, 64), (33, 64)),
        *((1100, None), (2050, None), (6000, None), (20_000, None)),  # from 2,049 on, in groups
    ],
)
def test_loss_on_a_gpu(monkeypatch, dtype, needs, tokens, chunk):
    """`chunks.run` on fake tensors, with a GPU's products and chunks in place of the CPU's."""
    sizes_on_gpu = partial(chunks.chunk_sizes, device=torch.device("cuda"))
    monkeypatch.setattr(
        chunks,
        "chunk_sizes",
        lambda n, v, dtype, _, adds: sizes_on_gpu(n, v, dtype, adds_to_weight=adds),
    )
    monkeypatch.setattr(chunks, "product", product_as_on_a_gpu)
    monkeypatch.setattr(chunks, "add_product", add_as_on_a_gpu)

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
                lambda *_: None,
                hidden,
                weight,
                None,
                kept,
                None,
                chunk,
                dtype,
                pull=pull,
                needs=needs,
            )
        results = [gradient for gradient in gradients if gradient is not None]
        sizes = sum(x.numel() * x.element_size() for x in (hidden, weight, *results))
        peak = max(usage.total for usage in ledger.usage())
        assert loss_bytes_on_gpu(tokens, hidden, weight, dtype, chunk, needs) == peak - sizes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("teacher_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("needs", [(True, True, False), (True, False, False)])
@pytest.mark.parametrize(("tokens", "chunk"), [(300, None), (129, 64), (100, 64), (6000, None)])
@pytest.mark.parametrize("teacher_size", [16, 200])
def test_divergence_on_a_gpu(monkeypatch, dtype, teacher_dtype, needs, tokens, chunk, teacher_size):
    sizes_on_gpu = partial(chunks.chunk_sizes, device=torch.device("cuda"))
    for module in (chunks, divergence):
        monkeypatch.setattr(module, "product", product_as_on_a_gpu)
    monkeypatch.setattr(chunks, "add_product", add_as_on_a_gpu)
    monkeypatch.setattr(
        divergence,
        "chunk_sizes",
        lambda n, v, dtype, _, adds, matrices: sizes_on_gpu(
            n, v, dtype, adds_to_weight=adds, matrices=matrices
        ),
    )
    count = tokens - 1
    ledger = Ledger(lambda *_: (None, 0))
    with FakeTensorMode(), torch.no_grad():
        student = torch.empty(tokens, 32, dtype=dtype), torch.empty(150, 32)
        teacher = torch.empty(tokens, teacher_size), torch.empty(150, teacher_size)
        ledger.hold([*student, *teacher], TEMPORARY)
        held = ledger.usage()[-1].total
        with ledger:
            index, labels = (torch.empty(count, dtype=torch.int64) for _ in range(2))
            heads = [divergence.Head(*head, None, None) for head in (student, teacher)]
            _, gradients = divergence.run(
                lambda *_: None, *heads, chunks.Kept(index, labels), 1.0, chunk, dtype,
                teacher_dtype, torch.ones(count), needs,
            )  # fmt: skip
        results = sum(x.numel() * x.element_size() for x in gradients if x is not None)
        peak = max(usage.total for usage in ledger.usage())
        expected = divergence_bytes_on_gpu(student, teacher, dtype, teacher_dtype, chunk, needs)
        assert expected == peak - held - results


def test_a_divergence_is_priced():
    """On a CPU what the operation allocates; FLOPs of four products."""
    needs = [True, True, False]
    hidden, weight = torch.empty(200, 16), torch.empty(900, 16)
    teacher = torch.empty(200, 32), torch.empty(900, 32)
    options = (-100, 1.0, None, None, 64, torch.float32, torch.float32)
    arguments = (hidden, weight, torch.zeros(200).long(), None, None, *teacher, None, *options)
    for kind in ("cpu", "cuda"):
        price = prices_on(Device(kind, 1))
        operation = torch.ops.lrk.linear_kl_total.default
        workspace, flops = price(operation, (*arguments, needs), {}, None)
        assert flops == 2 * 200 * 900 * (3 * 16 + 32)
        logits = 2 * 64 * 912 * 4
        block = (4 * 4 + 1) * 64 * 900 if kind == "cpu" else 0
        assert logits < workspace.nbytes - block < 1.1 * logits


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

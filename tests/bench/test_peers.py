"""Peers are asked for what we do: each provider beside ours, as far as a CPU has it."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from bench.case import Model
from bench.gpu.stand_in import stand_in
from bench.peers import Unavailable, attention, cross_entropy, rope
from bench.peers.attention import Documents
from lrk.kernels.attention import attention as lrk_attention

MODEL = Model(32, 4, 2, 16, 61, torch.float32)


def varlen_of_ours(q, k, v, ends_q, ends_k, longest_q, longest_k, **how):
    """A function of tokens and ends, as FlashAttention's; documents are told by their ends."""
    assert longest_q == longest_k == int(ends_q.diff().max())
    assert set(how) <= {"causal", "deterministic", "window_size"}
    assert how.get("causal") or how["window_size"] == (-1, 0)
    rows = (x.transpose(0, 1)[None] for x in (q, k, v))
    return lrk_attention(*rows, cu_seqlens=ends_q, cu_seqlens_k=ends_k)[0].transpose(0, 1)


@pytest.fixture
def gpu_packages(monkeypatch):
    """Packages that a CPU cannot have, with functions of ours in them."""
    for name, function in (
        ("flash_attn", "flash_attn_varlen_func"),
        ("flash_attn_interface", "flash_attn_varlen_func"),
    ):
        module = ModuleType(name)
        setattr(module, function, varlen_of_ours)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_of_ours)
    monkeypatch.setattr(attention, "need_gpu", lambda name: None)
    monkeypatch.setattr(attention, "need_package", lambda module, name: None)


@pytest.mark.parametrize(
    ("name", "rows", "count"),
    [
        *((name, 1, count) for name in ("lrk", "sdpa", "flex", "varlen") for count in (1, 3)),
        *((name, 2, 1) for name in ("sdpa_flash", "varlen", "flash_attn", "flash_attn_3")),
        *((name, 2, 3) for name in ("varlen", "flash_attn", "flash_attn_3")),
    ],
)
def test_attention(name, rows, count, gpu_packages):
    torch.manual_seed(0)
    documents = Documents(count, 24, rows)
    q, k, v = (torch.randn(rows, 24, h, 16).transpose(1, 2).requires_grad_() for h in (4, 2, 2))
    with stand_in():
        attend = getattr(attention, name)(documents)
    expected = lrk_attention(q, k, v, cu_seqlens=documents.ends)
    if name == "flex":  # which has no backward pass on a CPU
        q, k, v = (x.detach() for x in (q, k, v))
    found = attend(q, k, v)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if name == "flex":
        return
    gradients = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (found, expected))
    for x, y in zip(*gradients, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sdpa_flash", "sdpa_cudnn"])
def test_no_backend_is_given_documents_that_it_does_not_take(name):
    with pytest.raises(Unavailable, match="take no documents"):
        getattr(attention, name)(Documents(2, 24))


@pytest.mark.parametrize("name", ["flex", "flash_attn", "flash_attn_3", "fla"])
def test_what_needs_a_gpu_says_so(name):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(Unavailable, match="needs a GPU"):
        getattr(attention, name)(Documents(1, 24))


def test_what_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr("bench.peers.find_spec", lambda module: None)
    with pytest.raises(Unavailable, match="cut-cross-entropy is not installed"):
        cross_entropy.cut_cross_entropy()


@pytest.mark.parametrize("name", ["lrk", "eager", "compiled", "torch_chunked"])
def test_losses(name):
    torch.manual_seed(0)
    hidden, weight = torch.randn(20, 32), torch.randn(61, 32) / 6
    labels = torch.randint(0, 61, (20,))
    labels[3] = -100
    with stand_in():
        try:
            loss = getattr(cross_entropy, name)()
        except Unavailable as reason:
            pytest.skip(str(reason))
    expected = F.cross_entropy(hidden @ weight.T, labels)
    torch.testing.assert_close(loss(hidden, weight, labels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["lrk", "transformers", "transformers_given_tables", "compiled"])
def test_rotations(name):
    torch.manual_seed(0)
    q, k = torch.randn(1, 4, 10, 16), torch.randn(1, 2, 10, 16)
    positions = torch.arange(10)[None]
    with stand_in():
        try:
            rotate = getattr(rope, name)(MODEL)
        except Unavailable as reason:
            pytest.skip(str(reason))
    expected = rope.lrk(MODEL)(q, k, positions)
    for x, y in zip(rotate(q, k, positions), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)

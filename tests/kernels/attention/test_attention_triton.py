"""The Triton kernels of attention: on a GPU, or in the interpreter."""

import random

import pytest
import torch
from torch.testing import assert_close

from lrk.kernels.attention import attention_reference, attention_triton, backward, tiles
from lrk.kernels.attention.mask import Mask
from lrk.kernels.attention.tiles import Tiles
from tests.kernels.attention.conftest import Case


@pytest.fixture
def small_tiles(monkeypatch):
    """A function that makes tiles small, drawn from a seed, so that there are many."""

    def use(seed: int) -> None:
        draw = random.Random(seed)
        chosen = {
            kernel: Tiles(draw.choice([32, 64, 64]), draw.choice([32, 64, 64]), 4, 1)
            for kernel in (tiles.FORWARD, tiles.QUERY_GRADIENT, tiles.KEY_GRADIENT)
        }
        of_keys = chosen[tiles.KEY_GRADIENT]
        chosen[tiles.KEY_GRADIENT] = of_keys._replace(split=draw.random() < 0.5)
        monkeypatch.setattr(tiles, "choose", lambda kernel, *_: chosen[kernel])

    return use


@pytest.mark.parametrize("seed", range(200))
def test_random_case(seed, case_of, check, small_tiles, device, poisoned):
    small_tiles(seed)
    check(attention_triton, case_of(seed, max_length=130).to(device))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim", [16, 64, 128, 256])
def test_default_tiles(dtype, head_dim, check, case_of, device, poisoned):
    case = case_of(head_dim, max_length=130)
    q, k, v, grad_out = (
        torch.randn(*x.shape[:3], head_dim).to(dtype) for x in (*case[:3], case.grad_out)
    )
    case.arguments.pop("scale", None)  # it suits another head dimension
    check(attention_triton, case._replace(q=q, k=k, v=v, grad_out=grad_out).to(device))


def _inputs(device, length=100, heads=2, head_dim=32, batch=1):
    torch.manual_seed(0)
    shape = (3, batch, heads, length, head_dim)
    return [x.to(device).requires_grad_() for x in torch.randn(shape)]


def _gradients(inputs, **arguments):
    out, lse = attention_triton(*inputs, **arguments, return_lse=True)
    weight = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
    return (out, lse, *torch.autograd.grad((out * weight).sum() + lse.sum(), inputs))


def _changed(first, second):
    """Which tokens' rows differ in a bit."""
    return (
        ((first != second).flatten(3) if first.ndim > 3 else (first != second)[..., None])
        .any(-1)
        .any(1)[0]
    )


@pytest.mark.parametrize("edited", [0, 39, 40, 75, 99])
def test_a_document_knows_nothing_of_the_others(edited, small_tiles, device):
    small_tiles(0)
    ends = torch.tensor([0, 40, 40, 75, 100], device=device)
    inputs = _inputs(device)
    before = _gradients(inputs, cu_seqlens=ends)
    with torch.no_grad():
        for x in inputs:
            x[:, :, edited] += 1
    after = _gradients(inputs, cu_seqlens=ends)
    document = torch.bucketize(torch.arange(100, device=device), ends[1:], right=True)
    other = document != document[edited]
    for x, y in zip(before, after, strict=True):
        changed = _changed(x, y)
        assert not changed[other].any()
        assert changed[~other].any()


@pytest.mark.parametrize("by_position", [False, True])
def test_nothing_is_seen_outside_the_window(by_position, small_tiles, device):
    small_tiles(1)
    steps = torch.ones(1, 100, dtype=torch.int64, device=device)
    if by_position:
        steps[0, ::7] = 5
    positions = steps.cumsum(-1)
    arguments = {"window": 20}
    if by_position:
        arguments["window_position_ids"] = positions
    inputs = _inputs(device)
    before = _gradients(inputs, **arguments)
    edited = 30
    with torch.no_grad():
        inputs[1][:, :, edited] += 1
        inputs[2][:, :, edited] -= 1
    after = _gradients(inputs, **arguments)
    distance = positions[0] - positions[0, edited]
    sees = (distance >= 0) & (distance < 20)
    for x, y in zip(before[:3], after[:3], strict=True):  # out, lse, dq
        assert torch.equal(_changed(x, y), sees)


def test_deterministic(small_tiles, device):
    small_tiles(2)
    inputs = _inputs(device, heads=3)
    first, second = _gradients(inputs), _gradients(inputs)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("seed", range(3, 9))
def test_tokens_of_other_documents_are_not_even_read(seed, small_tiles, device):
    """NaN in one document reaches no other: its tiles are never part of a product."""
    small_tiles(seed)
    inputs = _inputs(device)
    with torch.no_grad():
        for x in inputs:
            x[:, :, 40:75] = torch.nan
    results = _gradients(inputs, cu_seqlens=torch.tensor([0, 40, 75, 100], device=device))
    for x in results:
        x = x.unsqueeze(-1) if x.ndim == 3 else x
        assert x[:, :, :40].isfinite().all()
        assert x[:, :, 75:].isfinite().all()
        assert x[:, :, 40:75].isnan().any()


@pytest.mark.parametrize("q_length", [100, 40])
def test_as_many_documents_as_rows_are_the_rows(q_length, small_tiles, device):
    """Boundaries change no bit then: the kernels are those without."""
    small_tiles(5)
    inputs = _inputs(device, batch=3)
    inputs[0] = inputs[0][:, :, :q_length].detach().requires_grad_()
    ends, of_keys = (torch.arange(4, device=device) * length for length in (q_length, 100))
    for window in (None, 30):
        by_ends = _gradients(inputs, window=window, cu_seqlens=ends, cu_seqlens_k=of_keys)
        by_rows = _gradients(inputs, window=window)
        assert all(torch.equal(x, y) for x, y in zip(by_ends, by_rows, strict=True))


def test_split_only_leaves_the_mask_away(small_tiles, device, monkeypatch):
    """The order of sums is the same but at the diagonal, and so are the numbers."""
    inputs = _inputs(device, length=200, heads=3)
    results = []
    for split in (False, True):
        monkeypatch.setattr(tiles, "choose", lambda *_, s=split: Tiles(32, 64, 4, 1, s))
        results.append(_gradients(inputs, cu_seqlens=torch.tensor([0, 70, 200], device=device)))
    for x, y in zip(*results, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("window", [2**30, 2**31 - 1, 2**40])
def test_a_window_without_an_end(window, by_position, small_tiles, device):
    small_tiles(2)
    inputs = _inputs(device)
    arguments = {"window": window}
    if by_position:  # up to the largest that there are
        steps = torch.arange(100, dtype=torch.int32, device=device)
        arguments["window_position_ids"] = (steps + (2**31 - 100))[None]
    for x, y in zip(_gradients(inputs, **arguments), _gradients(inputs), strict=True):
        assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_documents_without_keys_under_a_window_in_positions(device, check):
    """A left-padded row of a model with a window: its first document has no position at all."""
    q, k, v, grad_out = torch.randn(4, 1, 2, 64, 32).unbind()
    arguments = {
        "cu_seqlens": torch.tensor([0, 10, 10, 64]),
        "cu_seqlens_k": torch.tensor([0, 0, 10, 64]),
        "window": 16,
        "window_position_ids": torch.arange(64)[None],
    }
    grad_lse = torch.randn(1, 2, 64)
    check(attention_triton, Case(q, k, v, arguments, grad_out, grad_lse).to(device))


def test_offsets_beyond_two_billion_elements(device):
    """Rows so far apart that their offsets overflow 32 bits; only the pages in use exist."""
    length, stride = 200, 2**24 - 16
    storage = torch.empty((length - 1) * stride + 16, dtype=torch.float16, device=device)
    q = storage.as_strided((1, 1, length, 16), (0, 0, stride, 1))
    assert q.stride(2) * length > 2**31
    q.copy_(torch.randn(1, 1, length, 16))
    dense = q.contiguous()
    grad_out = torch.ones_like(dense)
    out, lse = attention_triton(q, q, q, return_lse=True)
    expected, expected_lse = attention_triton(dense, dense, dense, return_lse=True)
    assert_close(out, expected, rtol=0, atol=0)
    assert_close(lse, expected_lse, rtol=0, atol=0)
    mask = _causal_mask()
    for x, y in zip(
        backward.launch(grad_out, None, q, q, q, out, lse, mask, 0.25, None),
        backward.launch(grad_out, None, dense, dense, dense, out, lse, mask, 0.25, None),
        strict=True,
    ):
        assert_close(x, y, rtol=0, atol=0)


def _causal_mask():
    return Mask(None, None, None, None, None, causal=True, q_offset=0, window=None)


def test_a_single_visible_key(device, poisoned):
    """Weight 1 on one key: output its value, and a gradient of exactly zero up to rounding."""
    inputs = _inputs(device, length=40)
    out, lse = attention_triton(*inputs, window=1, return_lse=True)
    q, k, v = inputs
    assert_close(out, v)
    assert_close(lse, (q * k).sum(-1) * 32**-0.5)
    grad_q, grad_k, grad_v = torch.autograd.grad(out.sum(), inputs)
    assert_close(grad_v, torch.ones_like(v))
    assert grad_q.abs().max() < 1e-5
    assert grad_k.abs().max() < 1e-5


def test_no_queries_no_keys(device, poisoned):
    q, k, v = _inputs(device)
    out, lse = attention_triton(q[:, :, :0], k, v, return_lse=True)
    assert out.shape == (1, 2, 0, 32)
    assert lse.shape == (1, 2, 0)
    inputs = [q, k[:, :, :0].detach().requires_grad_(), v[:, :, :0].detach().requires_grad_()]
    out, lse = attention_triton(*inputs, return_lse=True)
    assert (out == 0).all()
    assert torch.isneginf(lse).all()
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert (gradients[0] == 0).all()


def test_gradients_that_come_expanded_or_not_at_all(small_tiles, device, poisoned):
    small_tiles(4)
    inputs = _inputs(device)
    out, lse = attention_triton(*inputs, return_lse=True)
    expected, expected_lse = attention_reference(*inputs, return_lse=True)
    assert_close(
        torch.autograd.grad(out.sum(), inputs, retain_graph=True),
        torch.autograd.grad(expected.sum(), inputs, retain_graph=True),
        rtol=1e-4,
        atol=1e-4,
    )
    assert_close(
        torch.autograd.grad(lse.sum(), inputs, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(expected_lse.sum(), inputs, allow_unused=True, materialize_grads=True),
        rtol=1e-4,
        atol=1e-4,
    )


def test_what_the_kernels_do_not_take(device):
    with pytest.raises(ValueError, match="head dim 257: the Triton kernels take at most 256"):
        attention_triton(*_inputs(device, head_dim=257))
    if device.type == "cpu":
        with pytest.raises(ValueError, match="float64: the Triton kernels take at most float32"):
            attention_triton(*(x.double() for x in _inputs(device)))


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_million_tokens(head_dim, device):
    """One query at the far end of 1,048,576 keys, whose offsets need 64 bits."""
    length = 2**20
    q = torch.randn(1, 8, 1, head_dim, device=device, dtype=torch.bfloat16)
    k, v = torch.randn(2, 1, 8, length, head_dim, device=device, dtype=torch.bfloat16)
    out = attention_triton(q, k, v)
    expected = attention_reference(q.float(), k.float(), v.float())
    assert_close(out.float(), expected, rtol=0, atol=1e-4)

"""Attention by a map equals the definition of the method, formed pair by pair in float64."""

from functools import partial

import pytest
import torch

from lrk.decode import attention as mapped
from lrk.decode.position_maps import DualChunk, SelfExtend, String
from lrk.kernels.attention import attention_triton
from lrk.kernels.rope import rope_triton
from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_as_exact_as


def ordinary(m: int, n: int) -> int:
    return m - n


def self_extend(m: int, n: int, window: int, group: int) -> int:
    if m - n < window:
        return m - n
    return m // group + window - window // group - n // group


def string(m: int, n: int, shift: int, window: int) -> int:
    return m - n - shift + window if m - n > shift else m - n


def dual_chunk(m: int, n: int, chunk: int, length: int) -> int:
    chunks_apart = m // chunk - n // chunk
    if chunks_apart == 0:
        return m % chunk - n % chunk
    if chunks_apart == 1:
        return min(m % chunk + chunk, length - 1) - n % chunk
    return length - 1 - n % chunk


CASES = [
    (SelfExtend(8, 4), partial(self_extend, window=8, group=4)),
    (SelfExtend(6, 3), partial(self_extend, window=6, group=3)),
    (SelfExtend(1, 1), ordinary),
    (SelfExtend(100, 10), ordinary),
    (String(9, 4), partial(string, shift=9, window=4)),
    (String(5, 5), ordinary),
    (DualChunk(7, 10), partial(dual_chunk, chunk=7, length=10)),
    (DualChunk(4, 5), partial(dual_chunk, chunk=4, length=5)),
    (DualChunk(16, 20), partial(dual_chunk, chunk=16, length=20)),
    (DualChunk(64, 80), ordinary),
]
LENGTH = 37


@pytest.mark.parametrize(("position_map", "relative"), CASES, ids=lambda case: str(case)[:24])
def test_relative_positions_are_those_of_the_definition(position_map, relative):
    """Read off the passes, for a prompt, for chunks of it and for single tokens."""
    for first, total in ((0, LENGTH), (13, LENGTH), (7, 14), *((i, i + 1) for i in range(LENGTH))):
        seen = {}
        for queries, passes in position_map.groups(first, total):
            for part in passes:
                q = part.query_positions(torch.tensor(queries)).tolist()
                k = part.key_positions(torch.tensor(part.keys)).tolist()
                for m, q_position in zip(queries, q, strict=True):
                    last = m - part.shift if part.causal else total
                    start = last - part.window + 1 if part.window else 0
                    for n, k_position in zip(part.keys, k, strict=True):
                        if start <= n <= last:
                            assert (m, n) not in seen, "a key is seen twice"
                            seen[m, n] = q_position - k_position
        assert seen == {(m, n): relative(m, n) for m in range(first, total) for n in range(m + 1)}


@pytest.mark.parametrize(("position_map", "relative"), CASES, ids=lambda case: str(case)[:24])
def test_outputs_and_gradients_are_as_exact_as_plain_attention(position_map, relative, directly):
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(heads, LENGTH, 8) for heads in (4, 2, 2, 4))

    def with_gradients(attend, *tensors):
        leaves = [x.clone().requires_grad_() for x in tensors]
        out = attend(*leaves)
        return out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))

    def ours(*qkv):
        batched = (x[None] for x in qkv)
        return mapped.mapped_attention(*batched, position_map, directly.inv_freq)[0]

    def definition(*qkv):
        return directly.attention(*qkv, relative)

    truth = with_gradients(definition, q.double(), k.double(), v.double())
    plain = with_gradients(partial(eager, relative=relative, inv_freq=directly.inv_freq), q, k, v)
    for name, one, two, three in zip(
        ("out", "dq", "dk", "dv"), with_gradients(ours, q, k, v), plain, truth, strict=True
    ):
        factor = OUTPUT_FACTOR if name == "out" else GRADIENT_FACTOR
        assert_as_exact_as(one, two, three, factor, name)


def eager(q, k, v, relative, inv_freq):
    """The definition in the dtype of the tensors, as eager transformers would form it."""
    apart = torch.tensor([[relative(m, n) for n in range(LENGTH)] for m in range(LENGTH)])
    angles = apart[..., None].float() * inv_freq.float()
    cos, sin = (torch.cat([x] * 2, -1).to(q.dtype) for x in (angles.cos(), angles.sin()))
    k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], 0) for x in (k, v))
    one, two = q.chunk(2, dim=-1)
    turned = q[:, :, None] * cos + torch.cat([-two, one], -1)[:, :, None] * sin
    scores = torch.einsum("hmnd,hnd->hmn", turned, k) * q.shape[-1] ** -0.5
    hidden = torch.ones(LENGTH, LENGTH).triu(1).bool()
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1, dtype=torch.float32)
    return weights.to(v.dtype) @ v


@pytest.mark.parametrize("first", [5, 23, 36])
@pytest.mark.parametrize(("position_map", "relative"), CASES[::3], ids=lambda case: str(case)[:24])
def test_the_last_queries_alone(position_map, relative, first, directly):
    torch.manual_seed(0)
    q, k, v = (torch.randn(heads, LENGTH, 8, dtype=torch.float64) for heads in (4, 2, 2))
    last = mapped.mapped_attention(
        q[None, :, first:], k[None], v[None], position_map, directly.inv_freq
    )
    exact = directly.attention(q, k, v, relative)[:, first:]
    torch.testing.assert_close(last[0], exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [0, 4, 8])
def test_triton_kernels_run_the_passes(case, dtype, directly, monkeypatch, device, poisoned):
    monkeypatch.setattr(mapped, "attention", attention_triton)
    monkeypatch.setattr(mapped, "rope", rope_triton)
    position_map, relative = CASES[case]
    torch.manual_seed(0)
    q, k, v = (torch.randn(heads, LENGTH, 16, device=device, dtype=dtype) for heads in (4, 2, 2))
    inv_freq = 100.0 ** (-torch.arange(8, dtype=torch.float64, device=device) / 8)
    out = mapped.mapped_attention(q[None], k[None], v[None], position_map, inv_freq)[0]
    q, k, v, inv_freq = (x.cpu() for x in (q, k, v, inv_freq))
    truth = type(directly)(inv_freq).attention(q, k, v, relative)
    plain = eager(q, k, v, relative, inv_freq)
    assert_as_exact_as(out.cpu(), plain, truth, OUTPUT_FACTOR, "out")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelfExtend(0, 1), "window is 0; it must be at least 1"),
        (lambda: SelfExtend(8, 0), "group is 0; it must be at least 1"),
        (lambda: SelfExtend(9, 4), "window is 9; it must be a multiple of group 4"),
        (lambda: String(4, 5), "window is 5; it must be at most shift, 4"),
        (lambda: String(4, 0), "window is 0; it must be at least 1"),
        (lambda: DualChunk(8, 8), "chunk is 8; it must be below length, 8"),
        (lambda: DualChunk(0, 8), "chunk is 0; it must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

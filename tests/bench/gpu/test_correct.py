"""The checks of the part `correct` find what they are for."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from bench.gpu import correct, tiles, truth
from bench.gpu.cases import VARIANTS, AttentionCase, attention_cases
from bench.gpu.correct import (
    DivergenceCase,
    LossCase,
    check_attention,
    check_divergence,
    check_loss,
    check_rope,
)
from bench.gpu.judge import Judged, judge
from bench.gpu.row import BOTH, Row
from bench.gpu.sizes import REAL, Heads
from lrk.kernels.attention import attention_reference
from lrk.kernels.attention.tiles import FORWARD, Tiles

ROW = Row("attention", BOTH, {}, "float32", "lrk")
CASE = AttentionCase("causal", torch.float32, 16, Heads(2, 1), 1, 20, 20)
SHAPE = {"B": 1, "S": 9, "H": 2, "Hk": 1, "D": 16, "rotary": 16}


def check(what):
    return {
        "attention": partial(check_attention, ROW, CASE, repeats=2),
        "rope": partial(check_rope, ROW, SHAPE, torch.float32, False, repeats=2),
        "interleaved rope": partial(check_rope, ROW, SHAPE, torch.float32, True, repeats=2),
        "loss": partial(check_loss, ROW, LossCase("mean", (20, 16, 33), torch.float32), repeats=2),
        "divergence": partial(
            check_divergence, ROW, DivergenceCase("mean", (20, 16, 33), torch.float32), repeats=2
        ),
    }[what]


OURS = {
    "attention": "attention_triton",
    "rope": "rope_triton",
    "interleaved rope": "rope_triton",
    "loss": "linear_cross_entropy_triton",
    "divergence": "linear_kl_triton",
}


@pytest.fixture(params=OURS)
def what(request):
    return request.param


def spoilt(monkeypatch, what, spoil):
    """Change the first result of an operation before the check sees it."""
    ours = getattr(correct, OURS[what])

    def changed(*arguments, **options):
        results = ours(*arguments, **options)
        if isinstance(results, tuple):
            return spoil(results[0]), *results[1:]
        return spoil(results)

    monkeypatch.setattr(correct, OURS[what], changed)


def test_right(what):
    (row,) = check(what)()
    assert row.ok
    assert row.error is not None
    assert row.error < 1e-5


def test_too_far(what, monkeypatch):
    """As far as one product in tf32 is."""
    spoilt(monkeypatch, what, lambda x: x * (1 + 2**-11))
    (row,) = check(what)()
    assert row.ok is False
    assert "exceeds" in row.note


def test_a_race(what, monkeypatch):
    """The last bit of one number, in every second run."""
    calls = iter(range(100))
    spoilt(monkeypatch, what, lambda x: x * (1 + 2**-23 * (next(calls) % 2)))
    (row,) = check(what)()
    assert row.ok is False
    assert "race" in row.note


def test_an_unwritten_output(monkeypatch):
    """Where a kernel writes nothing, poisoned memory shows."""
    ours = correct.attention_triton

    def unwritten(*arguments, **options):
        out, lse = ours(*arguments, **options)
        return out + torch.empty_like(out) * 0, lse

    monkeypatch.setattr(correct, "attention_triton", unwritten)
    (row,) = check("attention")()
    assert row.ok is False
    assert "out is not finite" in row.note


def test_cases_are_what_the_issue_of_them_is():
    """Odd lengths and head dimensions, groups, every way to say what is visible."""
    cases = list(attention_cases(REAL))
    assert {case.variant for case in cases} == set(VARIANTS)
    assert {case.head_dim for case in cases} == {64, 80, 96, 128, 256}
    assert {case.dtype for case in cases} == {torch.float16, torch.bfloat16, torch.float32}
    assert {case.heads.q // case.heads.k for case in cases} == {1, 3, 4, 7}
    assert {1, 7, 127, 129} < {case.q_length for case in cases}
    for case in cases:
        if case.variant == "documents":
            ends = case.arguments(torch.device("cpu"))["cu_seqlens"]
            assert ends[-1] == case.batch * case.q_length
            assert (ends.diff() >= 0).all()


@pytest.mark.parametrize("ends", [None, [0, 40, 40, 75]])
def test_truth_is_the_reference(ends, monkeypatch):
    monkeypatch.setattr(truth, "_ROWS", 16)
    torch.manual_seed(0)
    q, grad_out = torch.randn(2, 3, 75, 8, dtype=torch.float64)
    k, v = torch.randn(2, 75, 8, dtype=torch.float64)
    ends = None if ends is None else torch.tensor(ends, dtype=torch.int32)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, lse = attention_reference(
        q[None], k[None, None], v[None, None], cu_seqlens=ends, return_lse=True
    )
    expected = out[0], lse[0], *torch.autograd.grad(out, leaves, grad_out[None])
    found = truth.of_group(q.detach(), k.detach(), v.detach(), grad_out, ends, torch.float64)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y.detach(), rtol=1e-12, atol=1e-12)


def test_the_rule():
    true = torch.linspace(1, 2, 50, dtype=torch.float64)
    plain = true.bfloat16()
    near, far = plain.double(), true + 8 * (plain.double() - true).abs().max()

    def verdict(ours, plain=plain):
        return judge([Judged("out", ours, plain, true, False)])

    assert verdict(near.bfloat16()).ok
    assert not verdict(far.bfloat16()).ok
    assert "not finite" in verdict(torch.full_like(plain, torch.nan)).fault
    # float32 may be sixteen roundings off (of 2), and not fifty.
    rounded = true.float()
    assert verdict(rounded + 16 * 2**-23, rounded).ok
    assert not verdict(rounded + 100 * 2**-23, rounded).ok


def test_tiles_are_those_of_the_candidate():
    mask, q = None, torch.empty(1, 1, 1, 64)
    candidate = tiles.Candidate(FORWARD, Tiles(32, 64, 4, 1))
    with tiles.with_tiles(candidate):
        chosen = tiles.tiles.choose(FORWARD, "sm_90", q, mask, None, True)
    assert chosen == candidate.tiles
    assert tiles.tiles.choose(FORWARD, "sm_90", q, mask, None, True) != candidate.tiles


def test_the_fastest_tile_comes_first():
    rows = [
        Row("attention", BOTH, {}, "bfloat16", "lrk", f"key gradient {name}, rows", milliseconds=t)
        for name, t in (("64x128 w8 s2", 3.0), ("32x128 w8 s2", 2.0))
    ]
    rows[0] = replace(rows[0], note=tiles.IN_THE_TABLE)
    rows.append(Row("attention", BOTH, {}, "bfloat16", "lrk", "forward 1x1 w1 s1, rows", ok=False))
    assert tiles.best(rows) == {
        ("key gradient", "rows"): [(2.0, "32x128 w8 s2", False), (3.0, "64x128 w8 s2", True)]
    }


def test_what_the_table_has_is_a_candidate(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert tiles.candidates(REAL, FORWARD, documents=False)[0].tiles == Tiles(128, 32, 8, 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for kernel, some in tiles.CANDIDATES.items():
        found = [each.tiles for each in tiles.candidates(REAL, kernel, documents=True)]
        assert set(some) <= set(found)
        assert len(found) == len(set(found))

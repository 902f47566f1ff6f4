"""Few queries on many keys: which kernels attend, and that they are right."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lrk.hf.document_boundaries import document_boundaries
from lrk.kernels.attention import attention_reference, attention_triton, split_kv
from lrk.kernels.attention.tiles import Tiles
from lrk.testing import OUTPUT_FACTOR, assert_as_exact_as
from tests.kernels.attention.conftest import Case, _tensor


@pytest.fixture
def splits(monkeypatch) -> list[int]:
    """Filled with the number of splits of each call whose keys are split."""
    counted: list[int] = []
    stock = split_kv.max_splits

    def count(*arguments: int) -> int:
        counted.append(stock(*arguments))
        return counted[-1]

    monkeypatch.setattr(split_kv, "max_splits", count)
    return counted


@pytest.fixture
def small(monkeypatch) -> Callable[[int], None]:
    """A function that splits few keys into small tiles and shares, drawn from a seed."""

    def use(seed: int) -> None:
        draw = random.Random(seed)
        block_n, share = draw.choice([16, 32]), draw.choice([17, 64, 1000])
        stock = split_kv.choose

        def choose(*arguments: Any) -> Tiles | None:
            config = stock(*arguments)
            return config and config._replace(block_n=block_n)

        monkeypatch.setattr(split_kv, "MIN_LENGTH", 1)
        monkeypatch.setattr(split_kv, "MIN_SHARE", share)
        monkeypatch.setattr(split_kv, "choose", choose)

    return use


def decoding_case(seed: int) -> Case:
    """A few queries on a few hundred keys at most."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    dtype = draw.choice([torch.float32, torch.bfloat16, torch.bfloat16])
    group, q_length = draw.choice([1, 2, 3, 4, 7, 8]), draw.choice([1, 1, 1, 2, 5, 8])
    if dtype == torch.float32:
        q_length = min(q_length, 16 // group)
    batch, kv_heads = draw.choice([(1, 1), (1, 1), (1, 2), (2, 1)])
    head_dim = draw.choice([64, 64, 40, 80, 128])
    k_length = draw.choice([20, 40, 100])
    q = _tensor(draw, batch, kv_heads * group, q_length, head_dim).to(dtype)
    k, v = (_tensor(draw, batch, kv_heads, k_length, head_dim).to(dtype) for _ in range(2))
    arguments: dict[str, Any] = {"causal": draw.random() < 0.75}
    kind = draw.choice(["rows", "documents", "documents", "kv_lengths", "q_offset", "q_offsets"])
    if kind == "documents":
        documents = draw.choice([2, 3, 5])
        for name, length, step in (("cu_seqlens", q_length, 1), ("cu_seqlens_k", k_length, 4)):
            # No document of a single key, whose weight is 1: its gradient is zero but for rounding.
            ends = [0]
            for row in range(batch):
                inner = sorted(draw.choices(range(0, length, step), k=documents - 1))
                ends += [row * length + end for end in (*inner, length)]
            arguments[name] = torch.tensor(ends).to(draw.choice([torch.int32, torch.int64]))
    elif kind == "kv_lengths":
        lengths = [draw.choice([0, 3, k_length // 2, k_length]) for _ in range(batch)]
        arguments["kv_lengths"] = torch.tensor(lengths)
    elif kind == "q_offset":
        arguments["q_offset"] = draw.randint(-3, k_length)
    elif kind == "q_offsets":
        arguments["q_offset"] = torch.tensor([draw.randint(-3, k_length) for _ in range(batch)])
    if arguments["causal"] and draw.random() < 0.5:
        arguments["window"] = draw.choice([5, 20, 60, 1000])
        beyond = kind == "q_offset" and arguments["q_offset"] + q_length > k_length
        if draw.random() < 0.3 and not beyond:
            steps = torch.randint(1, 4, (draw.choice([1, batch]), k_length))
            arguments["window_position_ids"] = steps.cumsum(-1)
    if draw.random() < 0.25:
        arguments["softcap"] = draw.choice([5.0, 30.0])
    if draw.random() < 0.25:
        arguments["scale"] = 1.5 * head_dim**-0.5
    grad_out = torch.randn(q.shape).to(dtype)
    return Case(q, k, v, arguments, grad_out, torch.randn(q.shape[:3]) * draw.choice([0.0, 1.0]))


def unused(case: Case) -> Tensor:
    """(B, 1, Sk, 1) bool: keys beyond the valid ones, and of documents without queries."""
    batch, _, length, _ = case.k.shape
    if (lengths := case.arguments.get("kv_lengths")) is not None:
        return (torch.arange(length) >= lengths[:, None])[:, None, :, None]
    none = torch.zeros(batch * length, dtype=torch.bool)
    if (ends := case.arguments.get("cu_seqlens")) is not None:
        ends_k = case.arguments["cu_seqlens_k"]
        none = (ends.diff() == 0).repeat_interleave(ends_k.diff().long())
    return none.view(batch, 1, length, 1)


@pytest.mark.parametrize(
    "seed", [*range(60), *(pytest.param(n, marks=pytest.mark.slow) for n in range(60, 200))]
)
def test_random_case(seed, small, splits, check, device, poisoned):
    """Gradients too: they are made from this output and lse."""
    small(seed)
    case = decoding_case(seed)
    never = unused(case).to(device)

    def attend(q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
        k, v = (torch.where(never, torch.nan, x).to(x.dtype) for x in (k, v))
        return attention_triton(q, k, v, **arguments)

    check(attend, case.to(device))
    assert len(splits) == 1


def test_random_cases_have_several_splits(small):
    many = 0
    for seed in range(60):
        small(seed)
        shape = decoding_case(seed).k.shape
        many += split_kv.max_splits(shape[0] * shape[1], shape[2], 396) > 1
    assert many > 15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_static_cache_as_transformers_describes_it(dtype, splits, device, poisoned):
    """One query a row on the first 1,100 of 1,200 keys, some of them padding; the rest is NaN."""
    torch.manual_seed(0)
    length, valid = 1200, 1100
    q = torch.randn(2, 8, 1, 64).to(dtype)
    k, v = torch.randn(2, 2, 2, length, 64).to(dtype)
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[0, :70], mask[:, valid:] = 0, 0
    ends = document_boundaries(2, 1, length, valid - 1, attention_mask=mask[:, :valid])[0, 0]
    arguments = {"cu_seqlens": ends[0], "cu_seqlens_k": ends[1], "return_lse": True}
    plain = attention_reference(q, k, v, **arguments)
    truth = attention_reference(q.double(), k.double(), v.double(), **arguments)
    hidden = mask[:, None, :, None] == 0
    k, v = (x.masked_fill(hidden, torch.nan).to(device) for x in (k, v))
    arguments |= {"cu_seqlens": ends[0].to(device), "cu_seqlens_k": ends[1].to(device)}
    ours = attention_triton(q.to(device), k, v, **arguments)
    for name, x, y, z in zip(("out", "lse"), ours, plain, truth, strict=True):
        assert_as_exact_as(x.cpu(), y, z, OUTPUT_FACTOR, name)
    assert splits == [5]


def _qkv(heads: int, q_length: int, k_length: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(1, heads, q_length, 64), *torch.randn(2, 1, 2, k_length, 64)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "queries"),
    [
        (torch.bfloat16, 64, 64),
        (torch.float16, 128, 64),
        (torch.bfloat16, 80, 64),
        (torch.bfloat16, 256, 32),
        (torch.float32, 64, 16),
    ],
)
def test_what_is_split(dtype, head_dim, queries):
    """1,024 keys or more, for at most so many queries in a group of heads."""

    def applies(heads: int, q_length: int, k_length: int) -> bool:
        q = torch.empty(3, heads, q_length, head_dim, dtype=dtype)
        return split_kv.applies(q, torch.empty(3, 2, k_length, head_dim, dtype=dtype))

    assert applies(2 * queries, 1, 1024)
    assert applies(8, queries // 4, 1024)
    assert applies(2, 1, 100_000)
    assert not applies(8, queries // 4, 1023)
    assert not applies(2 * queries + 2, 1, 1024)
    assert not applies(8, queries // 4 + 1, 1024)


def test_more_splits_than_are_added_at_once(splits, monkeypatch, device, poisoned):
    monkeypatch.setattr(split_kv, "MIN_SHARE", 16)
    torch.manual_seed(0)
    q, (k, v) = torch.randn(1, 1, 1, 64), torch.randn(2, 1, 1, 1100, 64)
    ours = attention_triton(*(x.to(device) for x in (q, k, v)), return_lse=True)
    assert splits == [69]
    expected = attention_reference(*(x.double() for x in (q, k, v)), return_lse=True)
    for x, y in zip(ours, expected, strict=True):
        assert_close(x.cpu().double(), y, rtol=0, atol=2e-6)


def test_numbers_of_splits():
    """As many programs as an H100 holds at once, each with enough keys."""
    assert split_kv.max_splits(programs=8, k_length=131_072, at_once=396) == 49
    assert split_kv.max_splits(programs=8, k_length=4096, at_once=396) == 16
    assert split_kv.max_splits(programs=1, k_length=131_072, at_once=396) == 396
    assert split_kv.max_splits(programs=1000, k_length=131_072, at_once=396) == 1


def test_deterministic(small, device):
    small(0)
    q, k, v = (x.to(device) for x in _qkv(6, 3, 500))
    first, second = (attention_triton(q, k, v, return_lse=True) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_documents_of_a_tile_know_nothing_of_each_other(small, splits, device, poisoned):
    """NaN in the keys of one reaches no query of the others, though they share their programs."""
    small(1)
    q, k, v = _qkv(6, 5, 200)
    k[:, :, 40:75], v[:, :, 40:75] = torch.nan, torch.nan
    ends, ends_k = torch.tensor([0, 2, 3, 5]), torch.tensor([0, 40, 75, 200])
    out, lse = attention_triton(
        *(x.to(device) for x in (q, k, v)),
        cu_seqlens=ends.to(device),
        cu_seqlens_k=ends_k.to(device),
        return_lse=True,
    )
    others = [0, 1, 3, 4]
    assert splits
    assert out[:, :, others].isfinite().all()
    assert lse[:, :, others].isfinite().all()
    assert out[:, :, 2].isnan().all()


@pytest.mark.parametrize(
    ("ends", "ends_k"),
    [
        ([0, 0, 3, 6], [0, 0, 150, 300]),
        ([0, 0, 3, 6], [0, -50, 50, 10**9]),
        ([0, 1, 3, 4, 6], [0, 2**40, 100, -(2**40), 200]),
        ([0, 3, 6, 6], [200, 100, 0, -100]),
    ],
)
def test_wrong_boundaries_read_no_other_memory(ends, ends_k, small, splits, device):
    """Keys before and behind the row are NaN here; the interpreter would die of what is far off."""
    small(2)
    q, *keys = _qkv(4, 3, 100)
    q, keys = q.repeat(2, 1, 1, 1).to(device), [x.repeat(2, 1, 1, 1).to(device) for x in keys]
    k, v = (torch.nn.functional.pad(x, (0, 0, 100, 100), value=torch.nan) for x in keys)
    q_ends, k_ends = torch.tensor(ends, device=device), torch.tensor(ends_k, device=device)
    out = attention_triton(
        q, k[:, :, 100:-100], v[:, :, 100:-100], cu_seqlens=q_ends, cu_seqlens_k=k_ends
    )
    assert splits
    assert not out.isnan().any()


def test_offsets_beyond_two_billion_elements(small, splits, device):
    """Rows so far apart that their offsets overflow 32 bits; only the pages in use exist."""
    small(3)
    length, stride = 200, 2**24 - 16
    storage = torch.empty((length - 1) * stride + 16, dtype=torch.float16, device=device)
    k = storage.as_strided((1, 1, length, 16), (0, 0, stride, 1))
    k.copy_(torch.randn(1, 1, length, 16))
    dense, q = k.contiguous(), k[:, :, -3:]
    assert q.storage_offset() > 2**31
    ours = attention_triton(q, k, k, return_lse=True)
    expected = attention_triton(q.contiguous(), dense, dense, return_lse=True)
    assert len(splits) == 2
    for x, y in zip(ours, expected, strict=True):
        assert_close(x, y, rtol=0, atol=0)

"""Random arguments, right and wrong, for the public operations: a right value or one sentence.

Seeded, so that a fault can be run again by its block. Values are compared with the float64
reference roughly: how exact they are is what tests/kernels measure.
"""

import traceback
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from numbers import Integral
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from lrk import positions
from lrk.decode.contrast import Contrast
from lrk.decode.position_maps import DualChunk, SelfExtend, String
from lrk.kernels import attention as attention_package
from lrk.kernels import cross_entropy as loss_package
from lrk.kernels import rope as rope_package
from lrk.nn import Attention, LinearCrossEntropyLoss
from tests.fuzz.outcome import FAULT, SENTENCE, Outcome, judge, of_call

Arguments = dict[str, Any]

SENTENCES = (ValueError, TypeError, NotImplementedError)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TOLERANCE = dict(zip(FLOATS, (2e-2, 1e-1, 2e-4, 1e-9), strict=True))
SCALARS: tuple[Any, ...] = (
    None, True, False, np.True_, "2", "", b"2", "mean", "none", 0, 1, 2, 3, -1, -7, 0.0, 0.5, 1.0,
    2.0, 2.5, -1.0, 1e-300, 1e-30, 1e30, 1e300, float("nan"), float("inf"), -float("inf"),
    2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, 2**63, 2**70, -(2**70), 10**400, np.int64(2),
    np.uint8(3), np.float32(0.5), np.float64(2.0), np.array(2), np.array([2]), np.array(0.5),
    torch.tensor(2), torch.tensor(0.5), torch.tensor([2]), torch.tensor(2, device="meta"),
    Fraction(1, 2), Decimal("0.5"), 2j, [2], (), {}, object, float,
)  # fmt: skip


class Operation(NamedTuple):
    """One public function, how valid arguments of it are drawn, and what says what is right."""

    function: Callable[..., Any]
    draw: Callable[[Random], Arguments]
    check: Callable[[Arguments, Any], None]
    wrong_values: bool = True
    """Whether the values in its tensors of integers are checked; in the kernels they are not."""


# Hostile arguments.


def spoiled(random: Random, arguments: Arguments, wrong_values: bool) -> Arguments:
    """The arguments with one or two replaced, mostly by what does not fit."""
    changed = dict(arguments)
    for name in random.sample(list(arguments), min(len(arguments), random.choice((1, 1, 1, 2)))):
        value = arguments[name]
        if isinstance(value, Tensor) and random.random() < 0.9:
            changed[name] = _spoiled_tensor(random, value.detach(), wrong_values)
        else:
            changed[name] = random.choice(SCALARS)
    return changed


def _spoiled_tensor(random: Random, x: Tensor, wrong_values: bool) -> Any:
    dim = random.randrange(x.dim()) if x.dim() else 0
    changes: list[Callable[[], Any]] = [
        lambda: None,
        lambda: x.tolist(),
        lambda: x.float().numpy(),
        lambda: x.to(random.choice((*FLOATS, torch.int32, torch.int64, torch.bool))),
        lambda: x.to(random.choice((torch.complex64, torch.float8_e4m3fn, torch.int8))),
        lambda: x.to("meta"),
        lambda: x.to_sparse(),
        lambda: x[None],
        lambda: x.reshape(-1),
        lambda: x.movedim(dim, 0),
        lambda: x.narrow(dim, 0, 0) if x.dim() else x,
        lambda: x.narrow(dim, 0, x.shape[dim] // 2) if x.dim() else x,
        lambda: torch.stack([x, x], -1)[..., 0],
        lambda: x.flip(dim) if not _is_integer(x) else x,
        lambda: x[..., :1].expand(x.shape) if x.dim() and not _is_integer(x) else x,
        lambda: _overlapping(x),
    ]
    if _is_integer(x) and wrong_values:
        changes += [
            lambda: x - 1,
            lambda: x + 1,
            lambda: x + 2**40,
            lambda: -x,
            lambda: x.flip(dim) if x.dim() else x,
            lambda: torch.randint_like(x, -3, 50),
        ]
    return random.choice(changes)()


def _is_integer(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex())


def _overlapping(x: Tensor) -> Tensor:
    """The same shape, with elements that share their memory."""
    if x.dim() == 0 or x.numel() == 0 or _is_integer(x):
        return x
    flat = torch.linspace(-1, 1, sum(x.shape)).to(x.dtype)
    return flat.as_strided(x.shape, (1,) * x.dim())


def plain(arguments: Arguments) -> Arguments:
    """Scalars as Python's own."""
    return {name: _plain(value) for name, value in arguments.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor) or value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        value = value.item()
    if isinstance(value, Integral):
        return float(value) if 2**63 <= abs(value) < 2**1000 else int(value)
    return float(value) if isinstance(value, float | Fraction | Decimal) else value


def on_meta(arguments: Arguments, result: Any) -> bool:
    """Whether there are no values: then the result must have none either."""
    if not any(isinstance(x, Tensor) and x.is_meta for x in arguments.values()):
        return False
    found = [x for x in (result if isinstance(result, tuple) else (result,)) if x is not None]
    assert all(x.is_meta for x in found), "values out of nothing"
    return True


def close(ours: Tensor, truth: Tensor, dtype: torch.dtype, factor: float = 1.0) -> None:
    assert ours.shape == truth.shape, f"shape {tuple(ours.shape)}, right {tuple(truth.shape)}"
    if truth.numel() == 0:
        return
    ours, truth = ours.detach().double(), truth.detach().double()
    infinite = truth.isinf()
    assert torch.equal(ours[infinite], truth[infinite]), "infinite at other places"
    told = truth.abs() < torch.finfo(dtype).max / 2  # the rest, a gradient over 1e-30, overflows
    rest = truth[told]
    if rest.numel():
        error = (ours[told] - rest).abs().max().item()
        bound = factor * TOLERANCE[dtype] * max(1.0, rest.abs().max().item())
        assert error <= bound, f"error {error:.2e} exceeds {bound:.2e}"


def wide(arguments: Arguments) -> Arguments:
    """What is in floating point in float64, with a gradient where it had one."""
    return {
        name: x.detach().double().requires_grad_(x.requires_grad)
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for name, x in arguments.items()
    }


def same_gradients(ours: Tensor, truth: Tensor, mine: Arguments, exact: Arguments) -> None:
    """Of the sum of the two results, in the tensors that want one."""
    names = [n for n, x in mine.items() if isinstance(x, Tensor) and x.requires_grad]
    if not names or not ours.requires_grad:
        return
    found, right = (
        torch.autograd.grad(result.sum(), [given[n] for n in names], allow_unused=True)
        for result, given in ((ours, mine), (truth, exact))
    )
    for name, one, two in zip(names, found, right, strict=True):
        if one is not None and two is not None:
            close(one, two, mine[name].dtype, factor=3.0)


# Attention.


def _cuts(random: Random, length: int, count: int) -> list[int]:
    return [0, *sorted(random.randint(0, length) for _ in range(count - 1)), length]


def _ends(random: Random, batch: int, length: int, counts: list[int]) -> Tensor:
    ends = [0]
    for row, count in enumerate(counts):
        ends += [row * length + end for end in _cuts(random, length, count)[1:]]
    return torch.tensor(ends, dtype=random.choice((torch.int32, torch.int64)))


def attention_arguments(random: Random, small: bool) -> Arguments:
    batch, kv_heads = random.choice((0, 1, 1, 2, 3)), random.choice((1, 1, 2))
    heads = kv_heads * random.choice((1, 2, 3))
    head_dim = random.choice((1, 8, 16, 20, 32) if small else (1, 3, 8, 16, 33, 64, 96, 300))
    q_length, k_length = (random.choice((0, 1, 5, 17, 24 if small else 70)) for _ in range(2))
    if random.random() < 0.6:
        k_length = q_length
    dtype = random.choice(FLOATS[:3] if small else FLOATS)
    q, k, v = (
        torch.randn(batch, n, count, head_dim).transpose(1, 2).to(dtype)
        if random.random() < 0.5
        else torch.randn(batch, count, n, head_dim).to(dtype)
        for count, n in ((heads, q_length), (kv_heads, k_length), (kv_heads, k_length))
    )
    for x in (q, k, v):
        x.requires_grad_(random.random() < 0.5)
    arguments: Arguments = {
        "q": q,
        "k": k,
        "v": v,
        "causal": random.random() < 0.7,
        "scale": random.choice((None, 0.1, 1.0)),
        "softcap": random.choice((None, None, 5.0)),
        "return_lse": random.random() < 0.5,
    }
    kind = random.choice(("rows", "documents", "lengths", "offset", "offsets"))
    if kind == "documents" and batch:
        counts = [random.randint(1, 4) for _ in range(batch)]
        arguments["cu_seqlens"] = _ends(random, batch, q_length, counts)
        if q_length != k_length or random.random() < 0.5:
            arguments["cu_seqlens_k"] = _ends(random, batch, k_length, counts)
    elif kind == "lengths":
        arguments["kv_lengths"] = torch.randint(0, k_length + 1, (batch,))
    elif kind == "offset":
        arguments["q_offset"] = random.randint(-30, 100)
    elif kind == "offsets":
        arguments["q_offset"] = torch.randint(-30, 100, (batch,))
    if arguments["causal"] and random.random() < 0.5:
        arguments["window"] = random.choice((1, 4, 16, 1000, 2**31 - 1, 2**62))
        fits = (kind in ("rows", "lengths") and q_length <= k_length) or kind == "documents"
        if fits and random.random() < 0.5:
            steps = torch.randint(0, 4, (random.choice((1, batch)), k_length))
            arguments["window_position_ids"] = steps.cumsum(1)
    return arguments


def check_attention(arguments: Arguments, result: Any) -> None:
    if on_meta(arguments, result):
        return
    exact = plain(wide(arguments)) | {"return_lse": True}
    for name in ("window", "q_offset"):  # the reference adds to it in 64 bits
        if isinstance(exact.get(name), int):
            exact[name] = max(min(exact[name], 2**40), -(2**40))
    out, lse = attention_package.attention_reference(**exact)
    ours, *rest = result if arguments.get("return_lse", False) else (result,)
    dtype = arguments["q"].dtype
    assert ours.dtype == dtype
    close(ours, out, dtype)
    for mine in rest:
        close(mine, lse, dtype)
    if (exact.get("scale") or 1.0) < 1e3:  # beyond, roundings of the weights overflow in gradients
        same_gradients(ours, out, arguments, exact)


def through_a_module(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
    made = {n: options.pop(n) for n in ("causal", "window", "scale", "softcap") if n in options}
    return Attention(**made)(q, k, v, **options)


def module_arguments(random: Random) -> Arguments:
    arguments = attention_arguments(random, small=False)
    for name in ("kv_lengths", "q_offset", "return_lse"):
        arguments.pop(name, None)
    # Positions may have been drawn for keys of which a cache holds more than there are queries.
    if arguments["q"].shape[2] > arguments["k"].shape[2]:
        arguments.pop("window_position_ids", None)
    return arguments


def merge_arguments(random: Random) -> Arguments:
    shape = tuple(random.choice((0, 1, 2, 5)) for _ in range(4))
    lse = torch.randn(2, *shape[:3])
    lse[torch.rand(lse.shape) < 0.3] = -float("inf")
    return {
        "o1": torch.randn(shape) * lse[0].isfinite()[..., None],
        "lse1": lse[0],
        "o2": torch.randn(shape) * lse[1].isfinite()[..., None],
        "lse2": lse[1],
    }


def check_merge(arguments: Arguments, result: Any) -> None:
    if on_meta(arguments, result):
        return
    o1, lse1, o2, lse2 = (arguments[name].double() for name in ("o1", "lse1", "o2", "lse2"))
    lse = torch.logaddexp(lse1, lse2)
    some = lse.isfinite()  # without any key both outputs are 0 by themselves
    shares = ((each - lse).exp().nan_to_num(0.0)[..., None] for each in (lse1, lse2))
    exact = sum(o * share for o, share in zip((o1, o2), shares, strict=True))
    assert isinstance(exact, Tensor)
    dtype = min((arguments[name].dtype for name in arguments), key=lambda d: d.itemsize)
    close(result[0][some], exact[some], dtype)
    close(result[1], lse, dtype)


# RoPE.


def rope_arguments(random: Random, small: bool) -> Arguments:
    batch, length = random.choice((0, 1, 2, 3)), random.choice((0, 1, 7, 20 if small else 300))
    head_dim = random.choice((2, 3, 8, 20, 64))
    dtype = random.choice(FLOATS[:3] if small else FLOATS)
    ids = torch.randint(0, random.choice((10, 2**20, 2**31)), (random.choice((1, batch)), length))
    frequencies = 1e4 ** -torch.rand(random.randint(1, head_dim // 2), dtype=torch.float64)
    if random.random() < 0.3:
        frequencies = rope_package.phase_increments(frequencies)
    q, k = (
        torch.randn(batch, length, count, head_dim).transpose(1, 2).to(dtype)
        for count in (random.choice((1, 4)), random.choice((0, 1, 2)))
    )
    return {
        "q": q.requires_grad_(random.random() < 0.5),
        "k": k,
        "position_ids": ids.to(torch.int32) if random.random() < 0.3 else ids,
        "inv_freq": frequencies,
        "attention_scaling": random.choice((1.0, 1.2, 1)),
        "interleaved": random.choice((False, True)),
    }


def check_rope(arguments: Arguments, result: Any) -> None:
    if on_meta(arguments, result):
        return
    exact = plain(wide(arguments))
    if exact["inv_freq"].is_floating_point():
        exact["inv_freq"] = rope_package.phase_increments(exact["inv_freq"])
    truth = rope_package.rope_reference(**exact)
    for ours, right in zip(result, truth, strict=True):
        assert ours.dtype == arguments["q"].dtype
        close(ours, right, ours.dtype)
    same_gradients(result[0], truth[0], arguments, exact)


def increment_arguments(random: Random) -> Arguments:
    exponent = random.uniform(-80, 8)
    return {"inv_freq": torch.randn(random.choice((0, 1, 9)), dtype=torch.float64) * 2**exponent}


def check_increments(arguments: Arguments, result: Any) -> None:
    if on_meta(arguments, result):
        return
    inv_freq = arguments["inv_freq"].double()
    assert result.shape == inv_freq.shape
    turns = (inv_freq / (2 * torch.pi)).remainder(1.0) - result.double() / 2.0**64
    assert (turns - turns.round()).abs().sum() < 1e-7


# The loss, the probabilities and the divergence.


def loss_arguments(random: Random, small: bool) -> Arguments:
    lead = random.choice(((), (0,), (1,), (6,), (2, 3), (2, 0, 3), (9,) if small else (70,)))
    hidden_size, vocab = random.choice((1, 5, 16)), random.choice((1, 2, 11, 50))
    dtype = random.choice(FLOATS[:3] if small else FLOATS)
    labels = torch.randint(0, vocab, lead)
    labels = labels.masked_fill(torch.rand(lead) < 0.2, -100)
    arguments: Arguments = {
        "hidden": torch.randn(*lead, hidden_size).to(dtype).requires_grad_(random.random() < 0.6),
        "weight": torch.randn(vocab, hidden_size).to(dtype).requires_grad_(random.random() < 0.6),
        "labels": labels,
        "softcap": random.choice((None, None, 3.0)),
        "chunk_tokens": random.choice((None, 1, 4, 1000)),
    }
    if random.random() < 0.3:
        arguments["bias"] = torch.randn(vocab).to(dtype)
    if random.random() < 0.3:
        arguments["ignore_index"] = random.choice((-100, -100, 0, 1))
    return arguments


def options_of_mean(random: Random, arguments: Arguments) -> Arguments:
    arguments["reduction"] = random.choice(("mean", "mean", "sum", "none"))
    if random.random() < 0.3:
        arguments["token_weight"] = torch.rand(arguments["labels"].shape)
    if arguments["reduction"] == "mean" and random.random() < 0.4:
        arguments["num_items"] = random.choice((1, 7.5, torch.tensor(3), torch.tensor(0)))
    return arguments


def cross_entropy_arguments(random: Random, small: bool) -> Arguments:
    arguments = options_of_mean(random, loss_arguments(random, small))
    arguments["label_smoothing"] = random.choice((0.0, 0.0, 0.1, 1.0))
    arguments["z_loss"] = random.choice((0.0, 0.0, 1e-2))
    arguments["return_lse"] = random.random() < 0.2
    return arguments


def check_loss(arguments: Arguments, result: Any) -> None:
    if on_meta(arguments, result):
        return
    exact = plain(wide(arguments)) | {"return_lse": True}
    loss, lse = loss_package.linear_cross_entropy_reference(**exact)
    ours, *rest = result if arguments.get("return_lse", False) else (result,)
    dtype = arguments["hidden"].dtype
    close(ours, loss, dtype)
    for mine in rest:
        close(mine, lse, dtype)
    same_gradients(ours, loss, arguments, exact)


def loss_by_module(hidden: Any, weight: Any, labels: Any, **options: Any) -> Any:
    tensors = {n: options.pop(n) for n in ("bias", "token_weight", "num_items") if n in options}
    return LinearCrossEntropyLoss(**options)(hidden, weight, labels, **tensors)


def loss_module_arguments(random: Random) -> Arguments:
    arguments = cross_entropy_arguments(random, small=False)
    del arguments["return_lse"], arguments["chunk_tokens"]
    return arguments


def logprob_arguments(random: Random, small: bool) -> Arguments:
    return loss_arguments(random, small) | {"entropy": random.random() < 0.5}


def check_logprobs(arguments: Arguments, result: Any) -> None:
    if on_meta(arguments, result):
        return
    exact = plain(wide(arguments))
    truth = loss_package.token_logprobs_reference(**exact)
    found = [x for x in result if x is not None]
    assert len(found) == len(truth)
    for ours, right in zip(found, truth, strict=True):
        close(ours, right, arguments["hidden"].dtype)


def divergence_arguments(random: Random, small: bool) -> Arguments:
    arguments = options_of_mean(random, loss_arguments(random, small))
    lead, vocab = arguments["labels"].shape, arguments["weight"].shape[0]
    size, dtype = random.choice((1, 7)), arguments["hidden"].dtype
    arguments["teacher_hidden"] = torch.randn(*lead, size).to(dtype)
    arguments["teacher_weight"] = torch.randn(vocab, size).to(dtype)
    arguments["temperature"] = random.choice((1.0, 2, 0.5))
    if random.random() < 0.3:
        arguments["labels"] = None
    if random.random() < 0.3:
        arguments["teacher_bias"] = torch.randn(vocab).to(dtype)
    if random.random() < 0.3:
        arguments["teacher_softcap"] = 4.0
    return arguments


def check_divergence(arguments: Arguments, result: Any) -> None:
    if on_meta(arguments, result):
        return
    exact = plain(wide(arguments))
    truth = loss_package.linear_kl_reference(**exact)
    close(result, truth, arguments["hidden"].dtype)
    same_gradients(result, truth, arguments, exact)


# What has scalars alone.


def sampler_arguments(random: Random) -> Arguments:
    lengths = [random.randint(1, 9) for _ in range(random.randint(1, 6))]
    return {
        "segment_lengths": random.choice((lengths, torch.tensor(lengths), np.array(lengths))),
        "target_length": sum(lengths) + random.choice((0, 1, 30, 5000)),
    }


def check_sampler(arguments: Arguments, drawn: Any) -> None:
    lengths = np.asarray(arguments["segment_lengths"])
    assert drawn.dtype == torch.int64
    assert drawn.shape == (lengths.sum(),)
    assert drawn[0] == 0
    assert drawn[-1] < _plain(arguments["target_length"])
    assert (drawn.diff() > 0).all()


def samplers() -> dict[str, Operation]:
    options = {"pose": "num_chunks", "e2": "num_unshifted", "endprompt": "prompt_length"}
    options |= {"cream": "sigma", "longrecipe": "pin_end"}

    def draw(random: Random, name: str) -> Arguments:
        value = False if name == "longrecipe" else random.choice((1, 3))
        return sampler_arguments(random) | ({options[name]: value} if name in options else {})

    return {
        name: Operation(sample, lambda random, name=name: draw(random, name), check_sampler)
        for name, sample in positions.SAMPLERS.items()
    }


def numbers_of(**ranges: tuple[float, ...]) -> Callable[[Random], Arguments]:
    return lambda random: {name: random.choice(values) for name, values in ranges.items()}


def check_base(arguments: Arguments, result: Any) -> None:
    theta, length, target, head_dim = (float(_plain(x)) for x in arguments.values())
    factor = target / length
    truth = theta * (factor**2 - factor + 1) ** (head_dim / (head_dim - 2))
    assert result == pytest.approx(truth)


def check_numbers(arguments: Arguments, made: Any) -> None:
    for name, value in plain(arguments).items():
        assert type(getattr(made, name)) in (int, float)
        assert getattr(made, name) == type(getattr(made, name))(value)


LOSS, BY_TRITON = loss_package.linear_cross_entropy, loss_package.linear_cross_entropy_triton
OPERATIONS: dict[str, Operation] = {
    "attention": Operation(
        attention_package.attention, lambda r: attention_arguments(r, False), check_attention
    ),
    "attention_triton": Operation(
        attention_package.attention_triton,
        lambda r: attention_arguments(r, True),
        check_attention,
        wrong_values=False,
    ),
    "Attention": Operation(through_a_module, module_arguments, check_attention),
    "merge_attention": Operation(attention_package.merge_attention, merge_arguments, check_merge),
    "rope": Operation(rope_package.rope, lambda r: rope_arguments(r, False), check_rope),
    "rope_triton": Operation(
        rope_package.rope_triton, lambda r: rope_arguments(r, True), check_rope, wrong_values=False
    ),
    "phase_increments": Operation(
        rope_package.phase_increments, increment_arguments, check_increments
    ),
    "loss": Operation(LOSS, lambda r: cross_entropy_arguments(r, False), check_loss),
    "loss_triton": Operation(BY_TRITON, lambda r: cross_entropy_arguments(r, True), check_loss),
    "Loss": Operation(loss_by_module, loss_module_arguments, check_loss),
    "logprobs": Operation(
        loss_package.token_logprobs, lambda r: logprob_arguments(r, False), check_logprobs
    ),
    "logprobs_triton": Operation(
        loss_package.token_logprobs_triton, lambda r: logprob_arguments(r, True), check_logprobs
    ),
    "divergence": Operation(
        loss_package.linear_kl, lambda r: divergence_arguments(r, False), check_divergence
    ),
    "divergence_triton": Operation(
        loss_package.linear_kl_triton, lambda r: divergence_arguments(r, True), check_divergence
    ),
    **samplers(),
    "scaled_rope_theta": Operation(
        positions.scaled_rope_theta,
        numbers_of(theta=(1e4, 5e5), length=(8, 100), target=(100, 9999), head_dim=(64, 128)),
        check_base,
    ),
    "SelfExtend": Operation(SelfExtend, numbers_of(window=(8, 16), group=(2, 8)), check_numbers),
    "String": Operation(String, numbers_of(shift=(9, 40), window=(1, 9)), check_numbers),
    "DualChunk": Operation(DualChunk, numbers_of(chunk=(3, 8), length=(9, 99)), check_numbers),
    "Contrast": Operation(
        Contrast,
        numbers_of(alpha=(0.1, 0.6), beta=(0, 2.5), base_ratio=(1e-4, 0.5), gamma=(1, 30)),
        check_numbers,
    ),
}


def outcome(operation: Operation, arguments: Arguments) -> Outcome:
    """Of one call; a sentence has to be ours, and to name an argument."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            result = operation.function(**arguments)
        except BaseException as error:
            raised.append(error)
            raise
        operation.check(arguments, result)

    found = of_call(call, SENTENCES)
    if found.kind != SENTENCE:
        return found
    if not raised:
        return Outcome(FAULT, f"taken, though the reference refuses it: {found.text}")
    place = traceback.extract_tb(raised[0].__traceback__)[-1].filename
    ours = "/lrk/" in place or "/kernels/" in place
    if not ours or not any(name in found.text for name in arguments):
        return Outcome(FAULT, "".join(traceback.format_exception(raised[0])))
    return found


def written(arguments: Arguments) -> str:
    """Arguments as a fault shows them: tensors by what they are, small ones by their values."""

    def one(value: Any) -> str:
        if not isinstance(value, Tensor):
            return repr(value)[:200]
        what = f"{value.dtype} {tuple(value.shape)} {value.device}"
        small = value.numel() <= 12 and not value.is_meta and not value.is_sparse
        return f"{what} {value.tolist()}" if small else what

    return ", ".join(f"{name}={one(value)}" for name, value in arguments.items())


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
@pytest.mark.filterwarnings("ignore")
def test_kernel_arguments(block):
    outcomes = []
    for name, operation in OPERATIONS.items():
        for number in range(20 if "triton" in name else 100):
            random = Random(f"{block} {name} {number}")
            torch.manual_seed(random.getrandbits(32))
            arguments = operation.draw(random)
            if random.random() < 0.6:
                arguments = spoiled(random, arguments, operation.wrong_values)
            given = f"{name} {block} {number}: {written(arguments)}"
            outcomes.append((given, outcome(operation, arguments)))
    judge(outcomes)

"""Position-index samplers: which positions the tokens of a short sample pretend to have.

Each sampler takes the lengths of consecutive segments of a sample (sentences, say; `Ls` tokens in
all), the target window `Lt`, and a generator. It returns `Ls` positions: int64, strictly
increasing, the first 0, the last below `Lt`. RoPE sees differences of positions only, so a model
trained on them meets distances up to `Lt` at the cost of `Ls` tokens. Strictly increasing positions
keep causality by index and causality by position the same.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from lrk.kernels.argument_types import flag, integer, real, written

_LONGEST = 2**31  # positions are integers of 32 bits to the kernels of attention

SegmentLengths = Sequence[int] | Tensor
Sampler = Callable[[SegmentLengths, int, Generator | None], Tensor]


def contiguous(
    segment_lengths: SegmentLengths, target_length: int, generator: Generator | None = None
) -> Tensor:
    """Positions `0 .. Ls - 1`: ordinary training, whatever the target.

    Args:
        segment_lengths: (N,) positive integers.
        target_length: `Lt` in tokens, at least `Ls`.
        generator: unused, for the common signature of the samplers.

    Returns:
        (Ls,) int64.

    Raises:
        ValueError: for an empty or non-positive segment, or a target below `Ls`.
    """
    _, num_tokens, _ = _checked(segment_lengths, target_length)
    return torch.arange(num_tokens)


def longrecipe(
    segment_lengths: SegmentLengths,
    target_length: int,
    generator: Generator | None = None,
    pin_end: bool = False,
) -> Tensor:
    """Steps of 1 inside a segment, a random gap between segments (LongRecipe, 2409.00509, 3.2).

    With slack `G = Lt - Ls` a layout is the non-decreasing sequence of the segments' offsets,
    `0 = o_1 <= o_2 <= ... <= o_N <= G`. Adding `k` to the k-th turns the `N - 1` free ones into
    distinct integers below `G + N - 1`, so sorted distinct draws give **every layout with the same
    probability**. (The paper's Algorithm 1 bounds no gap and can overrun `Lt`; its Eq. 6 adds 1.)

    Args:
        segment_lengths: (N,) positive integers.
        target_length: `Lt` in tokens, at least `Ls`.
        generator: CPU generator; None takes PyTorch's default.
        pin_end: fix `o_N = G`, so that the last position is `Lt - 1`; needs two segments.

    Returns:
        (Ls,) int64.

    Raises:
        ValueError: for an empty or non-positive segment, a target below `Ls`, or `pin_end` with
            one segment.
    """
    lengths, num_tokens, target_length = _checked(segment_lengths, target_length)
    if flag("pin_end", pin_end) and len(lengths) == 1:
        raise ValueError("pin_end=True needs at least 2 segments: one segment starts at position 0")
    slack = target_length - num_tokens
    num_free = len(lengths) - 1 - int(pin_end)
    draws = _sorted_distinct(num_free, slack + num_free, generator)
    offsets = torch.zeros(len(lengths), dtype=torch.int64)
    offsets[1 : 1 + num_free] = draws - torch.arange(num_free)
    if pin_end:
        offsets[-1] = slack
    return _at_offsets(lengths, offsets)


def longrecipe_released(
    segment_lengths: SegmentLengths, target_length: int, generator: Generator | None = None
) -> Tensor:
    """What LongRecipe's released code draws, to repeat a published run.

    Among `G + N` slots, of which the `N` segments take `N` at random, a segment's offset is the
    number of free slots before it; the first segment then moves to the first slot, so that the gap
    behind it is two gaps in one. At last the first `U{1 .. ceil(Ls / 2)}` tokens are given their
    own indices: up to half of the sample, a quarter on average, is contiguous, and one jump stands
    for all the gaps that it had. See docs/positions.md for what that does to distances.

    Args:
        segment_lengths: (N,) positive integers. The released code takes the sentences of the text
            from which it selects; here they are those of the sample.
        target_length: `Lt` in tokens, at least `Ls`.
        generator: CPU generator; None takes PyTorch's default.

    Returns:
        (Ls,) int64.

    Raises:
        ValueError: for an empty or non-positive segment, or a target below `Ls`.
    """
    lengths, num_tokens, target_length = _checked(segment_lengths, target_length)
    count = len(lengths)
    offsets = _sorted_distinct(count, target_length - num_tokens + count, generator)
    offsets -= torch.arange(count)
    offsets[0] = 0
    drawn = _at_offsets(lengths, offsets)
    contiguous = _uniform(1, (num_tokens + 1) // 2, generator)
    drawn[:contiguous] = torch.arange(contiguous)
    return drawn


def pose(
    segment_lengths: SegmentLengths,
    target_length: int,
    generator: Generator | None = None,
    num_chunks: int = 2,
) -> Tensor:
    """A few long chunks with random skips between them (PoSE, 2309.10400, 3.2).

    The sample is cut into `num_chunks` chunks wherever the lengths fall, not at segments: each but
    the last has `U{1 .. ceil(Ls / num_chunks)}` tokens. Skips are `u_0 = 0` and
    `u_i ~ U{u_{i-1} .. Lt - Ls}`; chunk `i` is moved by `u_i`.

    Args:
        segment_lengths: (N,) positive integers; only their sum `Ls` matters.
        target_length: `Lt` in tokens, at least `Ls`.
        generator: CPU generator; None takes PyTorch's default.
        num_chunks: at least 1; the paper's default is 2. A sample of fewer tokens than that is
            cut into single tokens.

    Returns:
        (Ls,) int64.

    Raises:
        ValueError: for an empty or non-positive segment, a target below `Ls`, or
            `num_chunks` below 1.
    """
    _, num_tokens, target_length = _checked(segment_lengths, target_length)
    num_chunks = _at_least_one("num_chunks", num_chunks)
    num_chunks = min(num_chunks, num_tokens)
    longest = -(-num_tokens // num_chunks)
    lengths: list[int] = []
    skips = [0]
    for chunks_left in range(num_chunks - 1, 0, -1):
        room = num_tokens - sum(lengths) - chunks_left
        lengths.append(_uniform(1, min(longest, room), generator))
        skips.append(_uniform(skips[-1], target_length - num_tokens, generator))
    lengths.append(num_tokens - sum(lengths))
    return _at_offsets(torch.tensor(lengths), torch.tensor(skips))


def randpos(
    segment_lengths: SegmentLengths, target_length: int, generator: Generator | None = None
) -> Tensor:
    """`Ls` distinct positions of `{0 .. Lt - 1}`, sorted (Ruoss et al., 2305.16843).

    They are moved to start at 0; differences, all that RoPE sees, keep the paper's distribution.

    Args:
        segment_lengths: (N,) positive integers; only their sum `Ls` matters.
        target_length: `Lt` in tokens, at least `Ls`.
        generator: CPU generator; None takes PyTorch's default.

    Returns:
        (Ls,) int64.

    Raises:
        ValueError: for an empty or non-positive segment, or a target below `Ls`.
    """
    _, num_tokens, target_length = _checked(segment_lengths, target_length)
    chosen = _sorted_distinct(num_tokens, target_length, generator)
    return chosen - chosen[0]


def cream(
    segment_lengths: SegmentLengths,
    target_length: int,
    generator: Generator | None = None,
    sigma: float = 3.0,
) -> Tensor:
    """Head and tail of the target, and between them a middle part (CREAM, 2406.07138).

    With `a = Lt / Ls` the head has positions `0 .. h - 1`, the tail `Lt - h .. Lt - 1` and the
    middle `m = Ls - 2 h` contiguous ones. Two variants are drawn with probability 1/2 for each
    sample: *relativity*, `h = Ls // 3`, learns distances across the gaps; *continuity*, `h = 4 a`,
    keeps nearly all of the sample in one piece.

    The end of the middle is drawn in two steps. `r = floor(x)`, in half windows, where `x` is
    Gaussian with mean `1 + a` and deviation `sigma`, and what lies outside of `[2, 2 a]` counts as
    the end it is beyond; then `U{floor(h + (m - 1) r / 2) .. floor(r Ls / 2) - h - 1}`, both ends
    included. `r = 2` puts the middle next to the head, `r = 2 a` lets it reach the tail. (The paper
    names the Gaussian truncated, but inverts the distribution function of a whole one at uniform
    numbers, on a grid over `[2, 2 a]`: what is beyond the grid takes its ends, here as there.)

    The paper has `a` integer and the sample as long as the pretrained window. Here `a` is any
    ratio, and the head of continuity is at most that of relativity, which matters where `a` is
    above `Ls / 12`. Fewer than 3 tokens have no middle and stay contiguous.

    Args:
        segment_lengths: (N,) positive integers; only their sum `Ls` matters.
        target_length: `Lt` in tokens, at least `Ls`.
        generator: CPU generator; None takes PyTorch's default.
        sigma: deviation of `x`, positive. The paper's 3 is for `a = 8`; where `a` is much larger it
            keeps `r` at `1 + a`, and so the middle out of the second half of the target, which
            `3 a / 8` does not.

    Returns:
        (Ls,) int64.

    Raises:
        ValueError: for an empty or non-positive segment, a target below `Ls`, or `sigma` not
            positive.
    """
    _, num_tokens, target_length = _checked(segment_lengths, target_length)
    sigma = real("sigma", sigma)
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma}; it must be positive and finite")
    ratio = target_length / num_tokens
    relativity = num_tokens // 3
    continuity = min(4 * target_length // num_tokens, relativity)
    head = relativity if _uniform(0, 1, generator) else continuity
    if head == 0:
        return torch.arange(num_tokens)
    middle = num_tokens - 2 * head
    half_windows = math.floor(_clamped_gaussian(1 + ratio, sigma, 2, 2 * ratio, generator))
    first_end = head + (middle - 1) * half_windows // 2
    last_end = num_tokens * half_windows // 2 - head - 1
    start = _uniform(first_end, last_end, generator) - middle + 1
    return _at_offsets(
        torch.tensor([head, middle, head]),
        torch.tensor([0, start - head, target_length - num_tokens]),
    )


def e2(
    segment_lengths: SegmentLengths,
    target_length: int,
    generator: Generator | None = None,
    num_unshifted: int = 4,
) -> Tensor:
    """A random density of positions and a random place in the target (E2-LLM, 2401.06951).

    The paper gives token `m` the interpolated position `(m + t) / g` in the pretrained window,
    with a scale `g ~ U{1 .. g_max}` and a shift `t` for each sample; the first tokens, at which
    attention dumps what it does not need, have `t = 0`. A model that reaches the target
    `Lt = g_max Ls` by interpolation turns position `p` as the pretrained one turned `p / g_max`.
    So in positions of the target the paper's are `(m + t) g_max / g`: the sample is stretched over
    all of it (`g = 1`) or lies somewhere in it contiguously (`g = g_max`). They are rounded down to
    integers, which changes nothing where `g` divides `g_max`.

    `g_max = Lt / Ls`, the sample being as long as the pretrained window, and
    `t ~ U{0 .. (g - 1) Ls}`, all shifts that stay within the target.

    Args:
        segment_lengths: (N,) positive integers; only their sum `Ls` matters.
        target_length: `Lt` in tokens, at least `Ls`.
        generator: CPU generator; None takes PyTorch's default.
        num_unshifted: tokens with `t = 0`, at least 1; the paper's default is 4.

    Returns:
        (Ls,) int64.

    Raises:
        ValueError: for an empty or non-positive segment, a target below `Ls`, or
            `num_unshifted` below 1.
    """
    _, num_tokens, target_length = _checked(segment_lengths, target_length)
    num_unshifted = _at_least_one("num_unshifted", num_unshifted)
    scale = _uniform(1, target_length // num_tokens, generator)
    shift = _uniform(0, (scale - 1) * num_tokens, generator)
    tokens = torch.arange(num_tokens)
    tokens[num_unshifted:] += shift
    return tokens * target_length // (scale * num_tokens)


def endprompt(
    segment_lengths: SegmentLengths,
    target_length: int,
    generator: Generator | None = None,
    prompt_length: int = 20,
) -> Tensor:
    """The text at `0 .. n - 1`, a short prompt at the end of the target (EndPrompt, 2605.14589).

    The last `prompt_length` tokens of the sample are the terminal prompt: in the paper a fixed
    sentence of 18 to 20 tokens that the data path appends. Nothing is drawn.

    Args:
        segment_lengths: (N,) positive integers; only their sum `Ls` matters.
        target_length: `Lt` in tokens, at least `Ls`.
        generator: unused, for the common signature of the samplers.
        prompt_length: tokens of the prompt, at least 1. A sample of no more than that keeps one
            token for the text.

    Returns:
        (Ls,) int64.

    Raises:
        ValueError: for an empty or non-positive segment, a target below `Ls`, or
            `prompt_length` below 1.
    """
    _, num_tokens, target_length = _checked(segment_lengths, target_length)
    prompt_length = _at_least_one("prompt_length", prompt_length)
    prompt = min(prompt_length, num_tokens - 1)
    return _at_offsets(
        torch.tensor([num_tokens - prompt, prompt]),
        torch.tensor([0, target_length - num_tokens]),
    )


SAMPLERS: dict[str, Sampler] = {
    "contiguous": contiguous,
    "cream": cream,
    "e2": e2,
    "endprompt": endprompt,
    "longrecipe": longrecipe,
    "longrecipe_released": longrecipe_released,
    "pose": pose,
    "randpos": randpos,
}


def scaled_rope_theta(theta: float, length: int, target: int, head_dim: int) -> float:
    """RoPE base for a window extended from `length` to `target` tokens.

    `theta * (f * Lt / L - (f - 1)) ** (d / (d - 2))` with `f = Lt / L`: the base that dynamic NTK
    scaling of factor `f` reaches at length `Lt`, made static (LongRecipe, 2409.00509, 4.1).

    Args:
        theta: base of the pretrained model.
        length: `L`, its window in tokens.
        target: `Lt`, the window to reach, at least `L`.
        head_dim: `d`, the number of rotated dimensions, above 2.

    Raises:
        ValueError: for an argument out of range.
    """
    theta = real("theta", theta)
    length, target = integer("length", length), integer("target", target)
    head_dim = integer("head_dim", head_dim)
    if not 0 < theta < math.inf:
        raise ValueError(f"theta is {theta}; it must be positive and finite")
    if not 0 < length <= target:
        raise ValueError(f"length is {length}; it must be positive and at most target, {target}")
    if head_dim <= 2:
        raise ValueError(f"head_dim is {head_dim}; it must be above 2")
    factor = target / length
    return theta * (factor * factor - (factor - 1)) ** (head_dim / (head_dim - 2))


def _checked(segment_lengths: SegmentLengths, target_length: int) -> tuple[Tensor, int, int]:
    """The lengths (N,) int64, their sum and the target."""
    lengths = _integers(segment_lengths)
    if lengths is None or lengths.ndim != 1 or len(lengths) == 0 or lengths.min() < 1:
        raise ValueError(
            f"segment_lengths is {written(segment_lengths)}; it must be a non-empty list of "
            "positive integers"
        )
    target_length = integer("target_length", target_length)
    num_tokens = int(lengths.sum())
    if target_length < num_tokens:
        raise ValueError(
            f"target_length is {target_length}; it must be at least the {num_tokens} tokens of the "
            "sample"
        )
    if target_length > _LONGEST:
        raise ValueError(f"target_length is {target_length}; it must be at most 2^31")
    return lengths, num_tokens, target_length


def _integers(values: SegmentLengths) -> Tensor | None:
    """As an int64 tensor, or None where they are no integers."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):  # no numbers, ragged, beyond 64 bits
        return None
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    readable = tensor.layout == torch.strided and not tensor.is_meta
    return tensor.to("cpu", torch.int64) if whole and readable else None


def _at_least_one(name: str, value: int) -> int:
    value = integer(name, value)
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
    return value


def _sorted_distinct(count: int, total: int, generator: Generator | None) -> Tensor:
    """`count` of the integers below `total`, every subset equally likely, in order.

    Few of many are the first distinct ones of as many draws as that takes, so that a target of any
    length costs what the sample does.
    """
    if total <= 2 * count:
        return torch.randperm(total, generator=generator)[:count].sort().values
    drawn = torch.randint(total, (count,), generator=generator).unique()
    while len(drawn) < count:
        more = torch.randint(total, (count - len(drawn),), generator=generator)
        drawn = torch.cat([drawn, more]).unique()
    return drawn


def _uniform(low: int, high: int, generator: Generator | None) -> int:
    """One integer, `low` and `high` included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _clamped_gaussian(
    mean: float, deviation: float, low: float, high: float, generator: Generator | None
) -> float:
    """One number of a Gaussian: the bound where it is beyond one."""
    drawn = mean + deviation * float(torch.randn((), dtype=torch.float64, generator=generator))
    return min(max(drawn, low), high)


def _at_offsets(lengths: Tensor, offsets: Tensor) -> Tensor:
    """Token `j` of segment `k` gets position `j + offsets[k]`."""
    return torch.arange(int(lengths.sum())) + torch.repeat_interleave(offsets, lengths)

"""Position-index samplers: which positions the tokens of a short sample pretend to have.

Each sampler takes the lengths of consecutive segments of a sample (sentences, say; `Ls` tokens in
all), the target window `Lt`, and a generator. It returns `Ls` positions: int64, strictly
increasing, the first 0, the last below `Lt`. RoPE sees differences of positions only, so a model
trained on them meets distances up to `Lt` at the cost of `Ls` tokens. Strictly increasing positions
keep causality by index and causality by position the same.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

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
    return torch.arange(int(_checked_lengths(segment_lengths, target_length).sum()))


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
    lengths = _checked_lengths(segment_lengths, target_length)
    if pin_end and len(lengths) == 1:
        raise ValueError("pin_end=True needs at least 2 segments: one segment starts at position 0")
    slack = target_length - int(lengths.sum())
    num_free = len(lengths) - 1 - int(pin_end)
    draws = _sorted_distinct(num_free, slack + num_free, generator)
    offsets = torch.zeros(len(lengths), dtype=torch.int64)
    offsets[1 : 1 + num_free] = draws - torch.arange(num_free)
    if pin_end:
        offsets[-1] = slack
    return _at_offsets(lengths, offsets)


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
    num_tokens = int(_checked_lengths(segment_lengths, target_length).sum())
    if num_chunks < 1:
        raise ValueError(f"num_chunks is {num_chunks}; it must be at least 1")
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
    num_tokens = int(_checked_lengths(segment_lengths, target_length).sum())
    chosen = _sorted_distinct(num_tokens, target_length, generator)
    return chosen - chosen[0]


SAMPLERS: dict[str, Sampler] = {
    "contiguous": contiguous,
    "longrecipe": longrecipe,
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
    if theta <= 0:
        raise ValueError(f"theta is {theta}; it must be positive")
    if not 0 < length <= target:
        raise ValueError(f"length is {length}; it must be positive and at most target, {target}")
    if head_dim <= 2:
        raise ValueError(f"head_dim is {head_dim}; it must be above 2")
    factor = target / length
    return theta * (factor * factor - (factor - 1)) ** (head_dim / (head_dim - 2))


def _checked_lengths(segment_lengths: SegmentLengths, target_length: int) -> Tensor:
    lengths = torch.as_tensor(segment_lengths)
    if lengths.ndim != 1 or lengths.is_floating_point() or len(lengths) == 0 or lengths.min() < 1:
        raise ValueError(
            f"segment_lengths is {segment_lengths}; it must be a non-empty list of positive "
            "integers"
        )
    num_tokens = int(lengths.sum())
    if target_length < num_tokens:
        raise ValueError(
            f"target_length is {target_length}; it must be at least the {num_tokens} tokens of the "
            "sample"
        )
    return lengths.to(torch.int64)


def _sorted_distinct(count: int, total: int, generator: Generator | None) -> Tensor:
    """`count` of the integers below `total`, every subset equally likely, in order."""
    return torch.randperm(total, generator=generator)[:count].sort().values


def _uniform(low: int, high: int, generator: Generator | None) -> int:
    """One integer, `low` and `high` included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _at_offsets(lengths: Tensor, offsets: Tensor) -> Tensor:
    """Token `j` of segment `k` gets position `j + offsets[k]`."""
    return torch.arange(int(lengths.sum())) + torch.repeat_interleave(offsets, lengths)

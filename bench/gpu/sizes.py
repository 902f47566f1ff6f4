"""How large everything is: on a GPU, and in a rehearsal on a CPU, whose figures mean nothing."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from bench.case import MODELS, Model

# (batch, heads, key heads, head dimension) for which FlashAttention-3's times are published.
PUBLISHED = (4, 48, 48, 128)


class Heads(NamedTuple):
    """Query heads and key heads."""

    q: int
    k: int


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run.

    Attributes:
        copy_mib, product: of the ceilings.
        dtype: of what is timed.
        batch, groups: rows and heads of what is checked.
        main_dims: head dimensions at which attention is checked in all variants.
        other_kinds: dtypes and head dimensions at which it is checked in the usual ones.
        rotary_dims: head dimensions, and how much of them RoPE rotates.
        short, odd: lengths at which operations are checked.
        long: the length at which it is checked and its tiles are timed.
        huge_elements: more than 32 bits count.
        repeats: runs that must agree in every bit.
        lengths: at which operations are timed.
        error_up_to: lengths up to which their errors are told: float64 takes its time.
        packed: documents of a packed row.
        models: whose shapes they have.
        published: whether FlashAttention's published shape is timed, or a small one.
        loss_tokens: of the losses that are timed.
        loss_shape: (N, W, V) of the loss that is checked beside small ones.
        step_lengths: of the steps; the last with every memory technique.
        candidates: tiles to try for each of attention's kernels.
        compiled_before: calls whose kernels are compiled before they are needed.
    """

    copy_mib: int
    product: int
    dtype: torch.dtype
    batch: int
    groups: tuple[Heads, ...]
    main_dims: tuple[int, ...]
    other_kinds: tuple[tuple[torch.dtype, int], ...]
    rotary_dims: tuple[tuple[int, int], ...]
    short: int
    odd: tuple[int, ...]
    long: int
    huge_elements: int
    repeats: int
    lengths: tuple[int, ...]
    error_up_to: int
    packed: int
    models: dict[str, Model]
    published: tuple[int, int, int, int, int]
    loss_tokens: tuple[int, ...]
    loss_shape: tuple[int, int, int]
    step_lengths: tuple[int, int, int]
    candidates: int
    compiled_before: int


REAL = Sizes(
    copy_mib=1024,
    product=8192,
    dtype=torch.bfloat16,
    batch=2,
    groups=(Heads(9, 3), Heads(8, 2), Heads(7, 1), Heads(4, 4)),
    main_dims=(128, 64),
    other_kinds=(
        (torch.float16, 128),
        (torch.float32, 128),
        (torch.float32, 64),
        (torch.bfloat16, 96),
        (torch.bfloat16, 80),
        (torch.bfloat16, 256),
    ),
    rotary_dims=((128, 128), (64, 64), (80, 80), (256, 256), (80, 32)),
    short=701,
    odd=(1, 7, 127, 129, 260),
    long=39_322,
    huge_elements=2**31,
    repeats=10,
    lengths=(8192, 39_322, 131_072),
    error_up_to=40_000,
    packed=8,
    models={name: MODELS[name] for name in ("llama-3-8b", "smollm2-135m")},
    published=(*PUBLISHED, 8192),
    loss_tokens=(16_384, 39_322),
    loss_shape=(1024, 4096, 128_256),
    step_lengths=(8192, 39_322, 131_072),
    candidates=100,
    compiled_before=1000,
)

REHEARSAL = Sizes(
    copy_mib=1,
    product=64,
    dtype=torch.float32,
    batch=1,
    groups=(Heads(2, 1), Heads(1, 1)),
    main_dims=(16,),
    other_kinds=((torch.float32, 16),),
    rotary_dims=((16, 16), (24, 8)),
    short=34,
    odd=(1,),
    long=70,
    huge_elements=2**12,
    repeats=2,
    lengths=(48,),
    error_up_to=48,
    packed=2,
    models={"tiny": Model(32, 2, 1, 16, 61, torch.float32)},
    published=(2, 2, 2, 16, 32),
    loss_tokens=(24,),
    loss_shape=(20, 32, 61),
    step_lengths=(16, 32, 48),
    candidates=1,
    compiled_before=2,
)

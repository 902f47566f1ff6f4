"""Calls that launch kernels, over the stand-in driver; prints JSON for test_launch.py.

In a process of its own, since whether Triton interprets is fixed when kernels are decorated.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import compiler
from triton.tools.tensor_descriptor import TensorDescriptor

from lrk.kernels import target
from lrk.kernels.attention import attention_triton, split_kv
from lrk.kernels.cross_entropy import (
    linear_cross_entropy_triton,
    linear_kl_triton,
    token_logprobs_triton,
)
from lrk.kernels.rope import phase_increments, rope_triton
from tests.kernels.launch.stand_in_driver import StandIn

FORWARD = ["_attention_forward"]
SPLIT = ["_attention_split", "_attention_merge"]
BOTH = [*FORWARD, "_attention_query_gradient", "_attention_key_gradient"]
OF_DOCUMENTS = [name for kernel in BOTH for name in ("_document_tiles", kernel)]
SM_90 = (9, 0)


class Case(NamedTuple):
    """A call, the device it is made for, and the kernels it should launch, in order."""

    name: str
    call: Callable[[], object]
    kernels: list[str]
    capability: tuple[int, int] = SM_90


def attend(
    heads: int = 4,
    kv_heads: int = 2,
    length: int = 1000,
    k_length: int | None = None,
    head_dim: int = 64,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    heads_first: bool = False,
    differentiate: Callable[[Tensor, Tensor], Tensor] | None = lambda out, lse: (out * out).sum(),
    **options: Any,
) -> Callable[[], object]:
    """A call of attention and of its backward pass, from a scalar made of the output and lse."""

    def tensor(heads: int, length: int) -> Tensor:
        if heads_first:
            x = torch.zeros(batch, heads, length, head_dim, dtype=dtype)
        else:
            x = torch.zeros(batch, length, heads, head_dim, dtype=dtype).transpose(1, 2)
        return x.requires_grad_(differentiate is not None)

    def call() -> None:
        keys = length if k_length is None else k_length
        q, k, v = tensor(heads, length), tensor(kv_heads, keys), tensor(kv_heads, keys)
        out, lse = attention_triton(q, k, v, return_lse=True, **options)
        if differentiate is not None:
            differentiate(out, lse).backward()

    return call


def rotate(
    dtype: torch.dtype = torch.bfloat16, length: int = 1000, batch: int = 1
) -> Callable[[], object]:
    """A call of RoPE and of its backward pass."""

    def call() -> None:
        q, k = (
            torch.zeros(batch, length, heads, 64, dtype=dtype).transpose(1, 2).requires_grad_()
            for heads in (4, 2)
        )
        increments = phase_increments(torch.rand(32, dtype=torch.float64))
        q_out, k_out = rope_triton(q, k, torch.arange(length)[None], increments)
        (q_out.sum() + k_out.sum()).backward()

    return call


def lose(
    vocab: int = 1000, dtype: torch.dtype = torch.bfloat16, bias: bool = False, **options: Any
) -> Callable[[], object]:
    """The loss of 40 tokens, of which one is ignored, and its backward pass."""

    def call() -> None:
        hidden, weight = (
            torch.zeros(rows, 32, dtype=dtype, requires_grad=True) for rows in (40, vocab)
        )
        of_vocab = torch.zeros(vocab, dtype=dtype, requires_grad=True) if bias else None
        labels = torch.arange(40)
        labels[-1] = -100
        loss = linear_cross_entropy_triton(hidden, weight, labels, of_vocab, **options)
        loss.sum().backward()

    return call


def log_probabilities() -> None:
    hidden, weight = (torch.zeros(rows, 32, dtype=torch.bfloat16) for rows in (40, 1000))
    token_logprobs_triton(hidden, weight, torch.arange(40))


def entropies() -> None:
    hidden, weight = (
        torch.zeros(rows, 32, dtype=torch.bfloat16, requires_grad=True) for rows in (40, 1000)
    )
    token_logprobs_triton(hidden, weight, torch.arange(40), entropy=True).entropy.sum().backward()


def diverge(**options: Any) -> Callable[[], object]:
    """The divergence of 40 tokens, and its backward pass."""

    def call() -> None:
        hidden, weight = (
            torch.zeros(rows, 32, dtype=torch.bfloat16, requires_grad=True) for rows in (40, 1000)
        )
        teacher_hidden, teacher_weight = torch.zeros(40, 64), torch.zeros(1000, 64)
        loss = linear_kl_triton(hidden, weight, teacher_hidden, teacher_weight, **options)
        loss.sum().backward()

    return call


ENDS = torch.tensor([0, 300, 300, 1000])
POSITIONS = torch.arange(0, 2000, 2)[None]


def calls_of_attention() -> Iterator[tuple[str, Callable[[], object], list[str]]]:
    """Each kind of call that changes what is packed or compiled, in few specialisations."""
    yield "causal", attend(), BOTH
    yield "1 token", attend(length=1), BOTH
    yield "7 tokens", attend(length=7), BOTH
    yield "3 rows", attend(batch=3), BOTH
    yield "heads first", attend(heads_first=True), BOTH
    yield "lse", attend(differentiate=lambda out, lse: (out * out).sum() + lse.sum()), BOTH
    yield "lse alone", attend(differentiate=lambda out, lse: lse.sum()), BOTH
    yield "expanded gradient", attend(differentiate=lambda out, lse: out.sum()), BOTH
    yield "full, float16", attend(head_dim=32, causal=False, dtype=torch.float16), BOTH
    yield "documents", attend(head_dim=32, cu_seqlens=ENDS.int()), OF_DOCUMENTS
    yield "documents in int64", attend(head_dim=32, cu_seqlens=ENDS), OF_DOCUMENTS
    yield "a document a row", attend(batch=2, cu_seqlens=torch.tensor([0, 1000, 2000])), BOTH
    yield "window and softcap", attend(head_dim=32, window=256, softcap=30.0), BOTH
    in_positions = {"window": 256, "window_position_ids": POSITIONS}
    yield "window in positions", attend(head_dim=32, **in_positions), BOTH
    yield "65,536 rows", attend(batch=65_536, length=1), BOTH
    yield "65,536 heads", attend(heads=65_536, kv_heads=32_768, length=1), BOTH
    cache = {"head_dim": 32, "k_length": 2000, "differentiate": None}
    yield "key lengths", attend(kv_lengths=torch.tensor([1077]), **cache), FORWARD
    yield "offsets", attend(batch=2, q_offset=torch.tensor([5, 1000]), **cache), FORWARD
    for head_dim in (20, 128):
        yield f"head dim {head_dim}", attend(head_dim=head_dim), BOTH
    for head_dim in (80, 96, 256):
        yield f"head dim {head_dim}", attend(head_dim=head_dim, differentiate=None), FORWARD
    yield "float32", attend(head_dim=32, dtype=torch.float32), BOTH


def calls_of_decoding() -> Iterator[tuple[str, Callable[[], object], list[str]]]:
    """Few queries on many keys, in the kinds that change what is packed or compiled."""
    cache = {"length": 1, "k_length": 2000, "differentiate": None}
    yield "1 token", attend(**cache), SPLIT
    yield "8 tokens", attend(**cache | {"length": 8}), SPLIT
    yield "heads first", attend(heads_first=True, **cache), SPLIT
    yield "key lengths", attend(kv_lengths=torch.tensor([77]), **cache), SPLIT
    yield "offsets", attend(batch=2, q_offset=torch.tensor([5, 1000]), **cache), SPLIT
    static = {"cu_seqlens": torch.tensor([0, 0, 1]), "cu_seqlens_k": torch.tensor([0, 40, 2000])}
    yield "static cache", attend(**static, **cache), SPLIT
    yield "window and softcap", attend(window=256, softcap=30.0, **cache), SPLIT
    in_positions = {"window": 256, "window_position_ids": torch.arange(2000)[None]}
    yield "window in positions", attend(**in_positions, **cache), SPLIT
    yield "full, float16", attend(causal=False, dtype=torch.float16, **cache), SPLIT
    yield "head dim 20", attend(head_dim=20, **cache), SPLIT
    yield "head dim 256", attend(head_dim=256, **cache), SPLIT
    yield "float32", attend(dtype=torch.float32, **cache), SPLIT
    differentiated = {"length": 1, "k_length": 2000}
    yield "gradient", attend(**differentiated), [*SPLIT, *BOTH[1:]]


def calls_of_the_rest() -> Iterator[tuple[str, Callable[[], object], list[str]]]:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        yield f"rope in {dtype}", rotate(dtype), ["rope_kernel"] * 2
    yield "rope, 1 token of 3 rows", rotate(length=1, batch=3), ["rope_kernel"] * 2
    row = ["_row_kernel"]
    yield "loss", lose(), row
    yield "loss in float16", lose(dtype=torch.float16), row
    yield "loss in float32", lose(dtype=torch.float32), row
    yield "loss, a vocabulary beyond registers", lose(40_000), row
    yield "loss, bias", lose(bias=True), row
    yield "loss, label smoothing", lose(label_smoothing=0.1), row
    yield "loss, z-loss", lose(z_loss=1e-4), row
    yield "loss, softcap", lose(softcap=30.0), row
    yield "loss, all of these", lose(bias=True, label_smoothing=0.1, z_loss=1e-4, softcap=30.0), row
    yield "loss of each token", lose(reduction="none"), row * 2
    yield "log-probabilities", log_probabilities, row
    yield "entropies", entropies, row * 2
    pair = ["_pair_kernel"]
    yield "divergence", diverge(temperature=2), pair
    yield "divergence of each token", diverge(reduction="none", softcap=30.0), pair * 2


def cases() -> Iterator[Case]:
    for name, call, kernels in calls_of_attention():
        yield Case(f"attention, {name}", call, kernels)
    for name, call, kernels in calls_of_decoding():
        yield Case(f"decoding, {name}", call, kernels)
    for name, call, kernels in calls_of_the_rest():
        yield Case(name, call, kernels)
    # Tiles of head dimension 256 take the most shared memory, and sm_86 and sm_120 have the least.
    for capability, head_dim in (((8, 6), 256), ((10, 0), 128), ((12, 0), 256)):
        name = f"attention, head dim {head_dim}"
        yield Case(name, attend(head_dim=head_dim), BOTH, capability)
        yield Case("loss", lose(), ["_row_kernel"], capability)
    for capability, head_dim in (((8, 0), 128), ((8, 6), 256), ((10, 0), 128), ((12, 0), 256)):
        cache = {"length": 1, "k_length": 2000, "differentiate": None}
        yield Case("decoding", attend(head_dim=head_dim, **cache), SPLIT, capability)
    yield Case("attention, forward", attend(differentiate=None), FORWARD, (8, 0))
    yield Case("rope", rotate(), ["rope_kernel"] * 2, (8, 0))
    yield Case("loss", lose(), ["_row_kernel"], (8, 0))


@triton.jit
def _copy(tensor, out_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    tl.store(out_ptr + row * COLUMNS + column, tensor.load([0, 0]))


def copy(
    grid: tuple[int, ...] = (1,),
    side: int = 64,
    spoil: Callable[[TensorDescriptor], object] = lambda tensor: None,
) -> Callable[[], object]:
    """Launch a kernel of one tile; `spoil` its descriptor after Triton has checked it."""

    def call() -> None:
        x = torch.zeros(side + 1, side, dtype=torch.bfloat16)
        described = TensorDescriptor.from_tensor(x, [side, side])
        spoil(described)
        _copy[grid](described, torch.empty_like(x), side, side)

    return call


def _shift(tensor: TensorDescriptor) -> None:
    tensor.base = tensor.base.view(-1)[4:]


def _narrow(tensor: TensorDescriptor) -> None:
    tensor.strides = [tensor.strides[0] + 4, 1]


def copy_unseen() -> None:
    """Ask for more shared memory than there is, with Triton in the belief that there is enough."""
    with mock.patch.object(compiler, "max_shared_mem", return_value=2**20):
        copy(side=256)()


def refused() -> Iterator[Case]:
    """What no driver would launch, and before it the same in order."""
    yield Case("copy", copy(), ["_copy"])
    yield Case("copy, grid y", copy(grid=(1, 65_536, 1)), [])
    yield Case("copy, grid z", copy(grid=(1, 1, 65_536)), [])
    yield Case("copy, address", copy(spoil=_shift), [])
    yield Case("copy, stride", copy(spoil=_narrow), [])
    yield Case("copy, shared memory", copy(side=256), [], (12, 0))
    yield Case("copy, shared memory unseen", copy_unseen, [], (12, 0))


def report(driver: StandIn, case: Case) -> dict[str, Any]:
    """What a case was refused with, if anything, and the launches that it came to."""
    driver.use(case.capability)
    error = None
    try:
        case.call()
    except Exception as raised:  # of any type: it is a result, which the test judges
        error = f"{type(raised).__name__}: {raised}"
    return {
        "case": case.name,
        "arch": target.INTERPRETED,
        "error": error,
        "expected": case.kernels,
        "launches": [launch.as_dict() for launch in driver.take_launches()],
    }


def compiled_while_decoding(driver: StandIn) -> dict[str, int]:
    """How often each kernel is compiled for 100 tokens, whose cache grows by a key a token."""
    driver.use(SM_90)
    kernels = (split_kv._attention_split, split_kv._attention_merge)

    def compiled(kernel: Any) -> int:
        return len(kernel.device_caches[driver.driver.get_current_device()][0])

    before = [compiled(kernel) for kernel in kernels]
    for k_length in range(4096, 4196):
        options: dict[str, Any] = {"head_dim": 128, "batch": 2, "heads_first": True}
        attend(length=1, k_length=k_length, differentiate=None, **options)()
    driver.take_launches()
    return {
        kernel.fn.__name__: compiled(kernel) - count
        for kernel, count in zip(kernels, before, strict=True)
    }


def main() -> None:
    driver = StandIn()
    rows = {
        "launched": [report(driver, case) for case in cases()],
        "refused": [report(driver, case) for case in refused()],
        "compiled": compiled_while_decoding(driver),
    }
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

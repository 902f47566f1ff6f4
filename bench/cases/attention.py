"""What the compile report says about attention: our kernels, and fla's beside them."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from unittest import mock

import torch
from triton.runtime import driver

from bench.case import MODELS, Case, Model
from bench.offline import Launch
from lrk.kernels.attention import backward, forward
from lrk.kernels.attention.mask import Mask

LENGTH = 32_768
CAUSAL = Mask(None, None, None, None, None, causal=True, q_offset=0, window=None)
_ENDS = torch.tensor([0, 1000, LENGTH], dtype=torch.int32)
PACKED = CAUSAL._replace(cu_seqlens=_ENDS, cu_seqlens_k=_ENDS)


def cases() -> Iterator[Case]:
    for name, model in MODELS.items():
        yield _ours(name, model, "lrk", CAUSAL)
        yield _ours(name, model, "lrk, documents", PACKED)
        yield _decoding(name, model)
        if find_spec("fla"):
            yield _fla(name, model)


def _case(name: str, model: Model, provider: str, launch: Callable[[], object], tile) -> Case:
    return Case(
        op="attention",
        provider=provider,
        model=name,
        dtype=model.dtype,
        head_dim=model.head_dim,
        launch=launch,
        tile=tile,
    )


def _ours(name: str, model: Model, provider: str, mask: Mask) -> Case:
    def launch() -> None:
        q, k, v = (
            torch.empty(1, LENGTH, heads, model.head_dim, dtype=model.dtype).transpose(1, 2)
            for heads in (model.num_heads, model.num_kv_heads, model.num_kv_heads)
        )
        lse = torch.empty(1, model.num_heads, LENGTH)
        scale = model.head_dim**-0.5
        forward.launch(q, k, v, mask, scale, None)
        backward.launch(q, None, q, k, v, q, lse, mask, scale, None)

    return _case(name, model, provider, launch, _tile)


def _decoding(name: str, model: Model) -> Case:
    """One query on a cache of `LENGTH` keys."""

    def launch() -> None:
        q = torch.empty(1, model.num_heads, 1, model.head_dim, dtype=model.dtype)
        k, v = torch.empty(2, 1, model.num_kv_heads, LENGTH, model.head_dim, dtype=model.dtype)
        forward.launch(q, k, v, CAUSAL._replace(q_offset=LENGTH - 1), model.head_dim**-0.5, None)

    return _case(name, model, "lrk, decoding", launch, _tile)


def _tile(launch: Launch) -> str:
    sides = (launch.arguments.get(side) for side in ("BLOCK_M", "BLOCK_N"))
    return "x".join(str(side) for side in sides if side is not None)


def _fla(name: str, model: Model) -> Case:
    from fla.ops.attn import parallel

    def has_shared_memory(generation: str, device: int = 0) -> bool:
        """fla picks its tiles by the shared memory of the GPU in the machine."""
        target = driver.active.get_current_target()
        return target.backend == "cuda" and (generation == "ampere" or target.arch >= 90)

    def launch() -> None:
        q, k, v = (
            torch.empty(1, LENGTH, heads, model.head_dim, dtype=model.dtype)
            for heads in (model.num_heads, model.num_kv_heads, model.num_kv_heads)
        )
        lse = torch.empty(1, LENGTH, model.num_heads)
        scale = model.head_dim**-0.5
        with mock.patch.object(parallel, "check_shared_mem", has_shared_memory):
            parallel.parallel_attn_fwd(q, k, v, None, None, scale)
            parallel.parallel_attn_bwd(q, k, v, q, None, lse, q, scale=scale)

    def tile(launch: Launch) -> str:
        return f"{launch.arguments.get('BT', '')}x{launch.arguments.get('BS', '')}"

    return _case(name, model, "fla", launch, tile)

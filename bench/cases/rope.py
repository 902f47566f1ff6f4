"""What the compile report says about RoPE: our kernel, and Liger's beside it."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from bench.case import MODELS, Case, Model
from bench.machine_code import MachineCode
from bench.offline import Launch
from lrk.kernels.rope import kernel

LENGTH = 131_072


def cases() -> Iterator[Case]:
    for name, model in MODELS.items():
        yield _ours(name, model)
        if find_spec("liger_kernel"):
            yield _liger(name, model)


def _queries_and_keys(model: Model) -> tuple[Tensor, Tensor]:
    """As transformers lays them out. Memory that nothing touches costs nothing."""
    return tuple(
        torch.empty(1, LENGTH, heads, model.head_dim, dtype=model.dtype).transpose(1, 2)
        for heads in (model.num_heads, model.num_kv_heads)
    )


def _case(name: str, model: Model, provider: str, launch: Callable[[], object], **how) -> Case:
    elements = LENGTH * model.head_dim * (model.num_heads + model.num_kv_heads)
    return Case(
        op="rope",
        provider=provider,
        model=name,
        dtype=model.dtype,
        head_dim=model.head_dim,
        launch=launch,
        elements=elements,
        # Read and written once, and one position a token.
        minimum_bytes=2 * elements * model.dtype.itemsize + 8 * LENGTH,
        **how,
    )


def _ours(name: str, model: Model) -> Case:
    def launch() -> None:
        q, k = _queries_and_keys(model)
        position_ids = torch.empty(1, LENGTH, dtype=torch.int64)
        increments = torch.empty(model.head_dim // 2, dtype=torch.int64)
        kernel.rotate(q, k, position_ids, increments, 1.0, False, False)

    def trips(launch: Launch) -> tuple[int, ...]:
        return launch.arguments["heads_per_program"], launch.arguments["kv_heads_per_program"]

    def traffic(launch: Launch, code: MachineCode) -> int:
        """q and k by the loops' accesses; positions and frequencies once a program."""
        of_block = 8 * (launch.arguments["BLOCK_TOKENS"] + model.head_dim // 2)
        by_threads = code.threads * code.loop_access_bytes(trips(launch))
        return launch.programs * (by_threads + of_block)

    def tile(launch: Launch) -> str:
        return f"{launch.arguments['BLOCK_TOKENS']}x{model.head_dim}"

    return _case(name, model, "lrk", launch, trips=trips, traffic=traffic, tile=tile)


def _liger(name: str, model: Model) -> Case:
    from liger_kernel.ops.rope import rope_forward

    def launch() -> None:
        tables = (torch.empty(1, LENGTH, model.head_dim, dtype=model.dtype) for _ in range(2))
        rope_forward(*_queries_and_keys(model), *tables)

    def traffic(launch: Launch, code: MachineCode) -> int:
        """Rotated in place; of each row of the two tables the first half is read."""
        elements = LENGTH * model.head_dim * (model.num_heads + model.num_kv_heads + 0.5)
        return int(2 * elements * model.dtype.itemsize)

    def tile(launch: Launch) -> str:
        return f"1x{model.head_dim}"

    return _case(name, model, "liger", launch, trips=lambda launch: (), traffic=traffic, tile=tile)

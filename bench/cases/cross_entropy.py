"""What the compile report says of the passes over rows: the loss, Liger's, the divergence."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch

from bench.case import MODELS, Case, Model
from bench.machine_code import MachineCode
from bench.offline import Launch
from lrk.kernels.cross_entropy import kernel, kl
from lrk.kernels.cross_entropy.chunks import Pull, Statistics
from lrk.kernels.cross_entropy.kl.divergence import Head

TOKENS = 1024


def cases() -> Iterator[Case]:
    for name, model in MODELS.items():
        yield _ours(name, model)
        yield _divergence(name, model)
        if find_spec("liger_kernel"):
            yield _liger(name, model)


def _case(
    name: str,
    model: Model,
    provider: str,
    launch: Callable[[], object],
    op: str = "cross_entropy",
    **how,
) -> Case:
    elements = TOKENS * model.vocab
    return Case(
        op=op,
        provider=provider,
        model=name,
        dtype=model.dtype,
        head_dim=None,
        launch=launch,
        tile=lambda launch: f"1x{launch.arguments.get('BLOCK') or launch.arguments['BLOCK_SIZE']}",
        elements=elements,
        **how,
    )


def _ours(name: str, model: Model) -> Case:
    def launch() -> None:
        def per_token() -> torch.Tensor:
            return torch.empty(TOKENS)

        logits = torch.empty(TOKENS, model.vocab)
        kernel.row_pass(
            logits,
            torch.empty(TOKENS, dtype=torch.int64),
            bias=None,
            softcap=None,
            statistics=Statistics(per_token(), per_token(), torch.empty(0), torch.empty(0)),
            pull=Pull(per_token(), per_token(), None),
            gradient=logits.view(model.dtype)[:, : model.vocab],
        )

    def trips(launch: Launch) -> tuple[int, ...]:
        steps = -(-model.vocab // launch.arguments["BLOCK"])
        return () if launch.arguments["ON_CHIP"] else (steps, steps)

    def traffic(launch: Launch, code: MachineCode) -> int:
        """Float32 logits read once or twice, and the gradient written over them."""
        reads = 1 if launch.arguments["ON_CHIP"] else 2
        return TOKENS * model.vocab * (4 * reads + model.dtype.itemsize)

    return _case(
        name,
        model,
        "lrk",
        launch,
        trips=trips,
        traffic=traffic,
        minimum_bytes=TOKENS * model.vocab * (4 + model.dtype.itemsize),
    )


def _divergence(name: str, model: Model) -> Case:
    nothing = torch.empty(0)
    head = Head(nothing, nothing, bias=None, softcap=None)

    def launch() -> None:
        logits, teacher_logits = (torch.empty(TOKENS, model.vocab) for _ in range(2))
        kl.kernel.pair_pass(
            logits,
            teacher_logits,
            head,
            head,
            temperature=2.0,
            divergence=torch.empty(TOKENS),
            pull=torch.empty(TOKENS),
            gradient=logits.view(model.dtype)[:, : model.vocab],
        )

    def trips(launch: Launch) -> tuple[int, ...]:
        steps = -(-model.vocab // launch.arguments["BLOCK"])
        return (steps, steps)

    def traffic(launch: Launch, code: MachineCode) -> int:
        """Float32 logits of both read twice, and the gradient written over the student's."""
        return TOKENS * model.vocab * (4 * 4 + model.dtype.itemsize)

    return _case(
        name,
        model,
        "lrk",
        launch,
        op="linear_kl",
        trips=trips,
        traffic=traffic,
        minimum_bytes=TOKENS * model.vocab * (2 * 4 + model.dtype.itemsize),
    )


def _liger(name: str, model: Model) -> Case:
    from liger_kernel.ops.cross_entropy import cross_entropy_forward

    def launch() -> None:
        logits = torch.empty(TOKENS, model.vocab, dtype=model.dtype)
        target = torch.zeros(TOKENS, dtype=torch.int64)
        cross_entropy_forward(logits, target, None, -100, 0.0, 0.0, "mean", None, False)

    def traffic(launch: Launch, code: MachineCode) -> int:
        """Logits in the model's dtype read twice, and the gradient written over them."""
        return TOKENS * model.vocab * 3 * model.dtype.itemsize

    return _case(
        name,
        model,
        "liger",
        launch,
        traffic=traffic,
        minimum_bytes=TOKENS * model.vocab * 2 * model.dtype.itemsize,
    )

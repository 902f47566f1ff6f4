"""Which operations of lrk run."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lrk.train.arguments.argument import help_text
from lrk.train.nearest import require_one_of

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments

KERNELS = ("rope", "attention", "cross_entropy")


@dataclass
class KernelArguments:
    """The operations, by name."""

    kernels: dict[str, bool] = field(
        default_factory=lambda: dict.fromkeys(KERNELS, True),
        metadata=help_text("which lrk operations run"),
    )


def resolve(arguments: "LrkTrainingArguments") -> None:
    """Those that are not named run.

    Raises:
        ValueError: for an operation that does not exist.
    """
    for kernel in arguments.kernels:
        require_one_of("kernels", kernel, KERNELS)
    arguments.kernels = {kernel: arguments.kernels.get(kernel, True) for kernel in KERNELS}


def check(arguments: "LrkTrainingArguments") -> None:
    """Refuse skipped positions without the attention that reads them."""
    if arguments.kernels["attention"]:
        return
    if arguments.position_method != "contiguous":
        raise ValueError(
            f"kernels.attention is false with position_method {arguments.position_method!r}: stock "
            "attention takes every skipped position for a new document, so use position_method "
            "'contiguous' or keep kernels.attention"
        )
    if max(arguments.eval_lengths or [0]) > arguments.train_length:
        raise ValueError(
            f"kernels.attention is false with eval_lengths {arguments.eval_lengths}: without it "
            f"only train_length {arguments.train_length} can be evaluated"
        )

"""Which operations of lrk run."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lrk.hf.backends import BACKENDS, LRK
from lrk.hf.sdpa import IMPLEMENTATION as SDPA
from lrk.train.arguments.argument import help_text
from lrk.train.nearest import did_you_mean, require_one_of

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments

KERNELS = ("rope", "attention", "cross_entropy")
ATTENTION = "attention"
"""The one that may be another's, by name; the others run or do not."""


@dataclass
class KernelArguments:
    """The operations, by name: true, false, or for attention the name of another's."""

    kernels: dict[str, Any] = field(
        default_factory=lambda: dict.fromkeys(KERNELS, True),
        metadata=help_text("which lrk operations run"),
    )


def resolve(arguments: "LrkTrainingArguments") -> None:
    """Those that are not named run; attention `lrk` is true.

    Raises:
        ValueError: for an operation that does not exist, and for a value that it does not take.
    """
    for kernel, choice in arguments.kernels.items():
        require_one_of("kernels", kernel, KERNELS)
        _check_choice(kernel, choice)
    chosen = {kernel: arguments.kernels.get(kernel, True) for kernel in KERNELS}
    arguments.kernels = chosen | ({ATTENTION: True} if chosen[ATTENTION] == LRK else {})


def _check_choice(kernel: str, choice: Any) -> None:
    known = tuple(BACKENDS) if kernel == ATTENTION else ()
    if isinstance(choice, bool) or choice in known:
        return
    names = f", or one of {', '.join(known)}" if known else ""
    near = did_you_mean(str(choice), known)
    raise ValueError(f"kernels.{kernel} is {choice!r}; it must be true or false{names}{near}")


def check(arguments: "LrkTrainingArguments") -> None:
    """Refuse skipped positions without an attention that reads them, and documents likewise."""
    if arguments.kernels[ATTENTION] == SDPA and arguments.pack:
        raise ValueError(
            "pack is true with kernels.attention 'sdpa', which knows no documents: set pack to "
            "false, or keep kernels.attention true"
        )
    if arguments.kernels[ATTENTION]:
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

"""How an evaluation decodes, written as in Python: `self_extend(window=1024, group=8)`."""

import ast
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from lrk import decode
from lrk.decode.contrast import Contrast
from lrk.decode.position_maps import DualChunk, SelfExtend, String
from lrk.train.nearest import did_you_mean

_NUMBERS: dict[str, Callable[..., Any]] = {
    "self_extend": SelfExtend,
    "string": String,
    "dca": DualChunk,
    "pcd": Contrast,
}
"""What holds and checks the numbers of each method of `lrk.decode`."""


@dataclass(frozen=True)
class Decoding:
    """A method of `lrk.decode` and its numbers.

    Attributes:
        method: its name; None decodes as the model does by itself.
        numbers: all of them, defaults included.
    """

    method: str | None
    numbers: dict[str, float]

    @property
    def changes_logits(self) -> bool:
        """Whether it works on logits alone, so that hidden states know nothing of it."""
        return self.method == "pcd"

    def block(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        """In it the model decodes this way."""
        if self.method is None:
            return nullcontext()
        return getattr(decode, self.method)(model, **self.numbers)

    def __str__(self) -> str:
        return f"{self.method}({', '.join(f'{key}={n}' for key, n in self.numbers.items())})"


def read(text: str | None) -> Decoding:
    """A method from the way it is written.

    Raises:
        ValueError: in one sentence, for anything but a known method with numbers that it takes.
    """
    if text is None:
        return Decoding(None, {})
    name, given = _call(text)
    if name not in _NUMBERS:
        raise ValueError(
            f"decoding {name!r} is unknown; it must be one of {', '.join(_NUMBERS)}"
            f"{did_you_mean(name, _NUMBERS)}"
        )
    make = _NUMBERS[name]
    try:
        inspect.signature(make).bind(**given)
    except TypeError as error:
        allowed = ", ".join(map(str, inspect.signature(make).parameters.values()))
        raise ValueError(f"decoding is {text!r}: {error}; it must be {name}({allowed})") from error
    for key, value in given.items():
        kind = inspect.signature(make).parameters[key].annotation
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise ValueError(f"decoding is {text!r}: {key} must be of type {kind.__name__}")
    try:
        return Decoding(name, asdict(make(**given)))
    except ValueError as error:
        raise ValueError(f"decoding is {text!r}: {error}") from error


def _call(text: str) -> tuple[str, dict[str, Any]]:
    """`name(key=value, ...)`, with values that are literals."""
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Name):
            return call.id, {}
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            values = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
            return call.func.id, values
    except (SyntaxError, ValueError):
        pass
    raise ValueError(
        f"decoding is {text!r}; it must be written as in Python, "
        "like self_extend(window=1024, group=8)"
    )

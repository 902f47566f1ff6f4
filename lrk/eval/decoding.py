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
from lrk.train.nearest import require_one_of

_NUMBERS: dict[str, Callable[..., Any]] = {
    "self_extend": SelfExtend,
    "string": String,
    "dca": DualChunk,
    "pcd": Contrast,
}
"""What holds and checks the numbers of each method of `lrk.decode`."""


@dataclass(frozen=True)
class Decoding:
    """A method of `lrk.decode` and all its numbers, defaults included."""

    method: str
    numbers: dict[str, float]

    @property
    def changes_logits(self) -> bool:
        """Whether it works on logits alone, so that hidden states know nothing of it."""
        return self.method == "pcd"

    def __str__(self) -> str:
        return f"{self.method}({', '.join(f'{key}={n}' for key, n in self.numbers.items())})"


def decoding_block(text: str | None, model: PreTrainedModel) -> AbstractContextManager[Any]:
    """In it the model decodes by the method that is written; by itself if None is.

    Raises:
        ValueError: on entering, for a model that the method is not for.
    """
    if text is None:
        return nullcontext()
    found = read(text)
    return getattr(decode, found.method)(model, **found.numbers)


def read(text: str) -> Decoding:
    """A method from the way it is written.

    Raises:
        ValueError: in one sentence, for anything but a known method with numbers that it takes.
    """
    name, given = _call(text)
    require_one_of("decoding", name, _NUMBERS)
    signature = inspect.signature(_NUMBERS[name])
    try:
        signature.bind(**given)
    except TypeError as error:
        allowed = ", ".join(map(str, signature.parameters.values()))
        raise ValueError(f"decoding is {text!r}: {error}; it must be {name}({allowed})") from error
    try:
        kinds = {key: signature.parameters[key].annotation for key in given}
        numbers = {key: _number(key, value, kinds[key]) for key, value in given.items()}
        return Decoding(name, asdict(_NUMBERS[name](**numbers)))
    except ValueError as error:
        raise ValueError(f"decoding is {text!r}: {error}") from error


def _number(name: str, value: Any, kind: type) -> int | float:
    """As `kind`, so that 1 and 1.0 are the same number of a method."""
    fits = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not fits or not -(2.0**63) < value < 2.0**63:
        raise ValueError(f"{name} is {value!r}; it must be of type {kind.__name__}, and finite")
    return kind(value)


def _call(text: str) -> tuple[str, dict[str, Any]]:
    """`name(key=value, ...)`, with values that are literals."""
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Name):
            return call.id, {}
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            names = [word.arg for word in call.keywords]
            if None not in names and len(set(names)) == len(names):
                values = [ast.literal_eval(word.value) for word in call.keywords]
                return call.func.id, dict(zip(map(str, names), values, strict=True))
    except (SyntaxError, TypeError, ValueError):
        pass
    raise ValueError(
        f"decoding is {text!r}; it must be written as in Python, "
        "like self_extend(window=1024, group=8)"
    )

"""RoPE divisors that a search has found, and the file that holds them."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple


class RopeFactors(NamedTuple):
    """Divisors that a search has found."""

    long_factor: tuple[float, ...]
    """(R/2,) of `theta ** (-2 j / R)`, each at least 1."""
    attention_factor: float | None = None
    """Of cosine and sine; None is LongRoPE's `sqrt(1 + ln(Lt / L0) / ln(L0))`."""
    target_length: int | None = None
    """The window that they were found for, if that is known."""
    original_max_position_embeddings: int | None = None
    """The window `L0` of pretraining of the model that they were found for, if that is known."""


def read_rope_factors(file: Path) -> RopeFactors:
    """Divisors from a file: a JSON object with `long_factor`, and the rest of `RopeFactors` or not.

    Raises:
        ValueError: in one sentence, if there is no such file, or it holds anything else.
    """
    named = f"rope_factors {str(file)!r}"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{named} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{named} is no JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("long_factor"), list):
        raise ValueError(f"{named} must hold a JSON object with a list long_factor")
    for index, divisor in enumerate(content["long_factor"]):
        if not _is_number(divisor) or divisor < 1:
            raise ValueError(
                f"{named} has {divisor!r} as long_factor {index}; each must be a finite number of "
                "at least 1"
            )
    attention = content.get("attention_factor")
    if attention is not None and not (_is_number(attention) and attention > 0):
        raise ValueError(
            f"{named} has attention_factor {attention!r}; it must be a finite number above 0"
        )
    lengths = [content.get(name) for name in ("target_length", "original_max_position_embeddings")]
    for length in lengths:
        if length is not None and (type(length) is not int or length < 2):
            raise ValueError(f"{named} has a window of {length!r}; it must be an integer above 1")
    return RopeFactors(tuple(map(float, content["long_factor"])), attention, *lengths)


def _is_number(value: Any) -> bool:
    # An integer can be too large for a float; NaN compares with nothing.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max

"""JSON files with a digest of their content: results that say so when they are damaged.

A flipped bit in a score would be another score, which nothing else notices.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrk.atomic import write_text

_DIGEST = "sha256"


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object with the digest of its content, whole or not at all."""
    body = json.dumps(content, indent=1, ensure_ascii=False, default=str)
    sealed = {_DIGEST: digest(json.loads(body)), **json.loads(body)}
    write_text(path, json.dumps(sealed, indent=1, ensure_ascii=False) + "\n")


def read_sealed(path: Path, help: str = "delete it, and it is computed again") -> dict[str, Any]:
    """What `write_sealed` was given.

    Args:
        help: for who finds it damaged.

    Raises:
        ValueError: if the file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        whole = content.pop(_DIGEST) == digest(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(
            f"{str(path)!r} is damaged, or of a release that wrote no {_DIGEST}: {help}"
        )
    return content


def digest(content: Any) -> str:
    """SHA-256, in hexadecimal, of what JSON takes, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

"""The audit of a shard: which parts of which documents each sample was made of, and what it gains.

Samples that verification left out are there too. A shard has its file as soon as it has its name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lrk.data.assemble.parts import Part
from lrk.sealed import read_sealed, write_sealed


class Verdict(NamedTuple):
    """On one planned sample.

    Attributes:
        parts: in order.
        gain: nats a token, of the scored parts; None without verification.
        kept: whether it is in the shard.
    """

    parts: list[Part]
    gain: float | None
    kept: bool


def audit_path(shard: Path) -> Path:
    """`samples-00000.json` of `documents-00000.arrow`."""
    return shard.with_name(shard.stem.replace("documents", "samples") + ".json")


def write_verdicts(shard: Path, verdicts: Sequence[Verdict]) -> None:
    """Write them beside a shard; a part is a string, `DOCUMENT START STOP`."""
    samples = [
        {"parts": [" ".join(map(str, part)) for part in parts], "gain": gain, "kept": kept}
        for parts, gain, kept in verdicts
    ]
    write_sealed(audit_path(shard), {"samples": samples})


def read_verdicts(shard: Path) -> list[Verdict]:
    """What was written.

    Raises:
        ValueError: if it is damaged.
        FileNotFoundError: if it is not there.
    """
    samples = read_sealed(audit_path(shard), "run lrk-data assemble again")["samples"]
    return [
        Verdict(
            [Part(*map(int, part.split())) for part in sample["parts"]],
            sample["gain"],
            sample["kept"],
        )
        for sample in samples
    ]


def is_audited(shard: Path) -> bool:
    """Whether the audit of a shard is there and whole."""
    try:
        read_verdicts(shard)
    except (OSError, ValueError):
        return False
    return True

"""Python's own standard library: real, long documents that lie on every machine."""

import sysconfig
from pathlib import Path

from datasets import Dataset

# Of 16 different corners of the library. No other file is evaluated on, and none of these trained.
HELD_OUT = (
    "asyncio/base_events.py",
    "calendar.py",
    "csv.py",
    "difflib.py",
    "doctest.py",
    "email/message.py",
    "ftplib.py",
    "heapq.py",
    "http/cookies.py",
    "json/decoder.py",
    "logging/config.py",
    "mailbox.py",
    "pprint.py",
    "statistics.py",
    "textwrap.py",
    "unittest/case.py",
)
# Smaller files hardly fill a sample; larger ones are tables (pydoc_data/topics.py has 757 KB).
MIN_BYTES, MAX_BYTES = 12_000, 300_000


def training_documents() -> Dataset:
    """One row `{"text"}` a file, in the order of their names."""
    root = _root()
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    chosen = [
        name
        for name in names
        if name not in HELD_OUT
        and not {"site-packages", "test", "tests"} & set(Path(name).parts)
        and MIN_BYTES <= (root / name).stat().st_size <= MAX_BYTES
    ]
    return _read(chosen)


def held_out_documents() -> Dataset:
    """One row `{"text"}` for each of `HELD_OUT`."""
    return _read(HELD_OUT)


def _root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _read(names: tuple[str, ...] | list[str]) -> Dataset:
    texts = [(_root() / name).read_text(encoding="utf-8") for name in names]
    return Dataset.from_dict({"text": texts})

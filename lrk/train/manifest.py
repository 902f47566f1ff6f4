"""What a checkpoint says of itself: of which run it is, and the hashes of its files.

    {"run": {"learning_rate": 5e-05, ...}, "files": {"model.safetensors": {"sha256": ...}, ...}}

It is written last. SHA-256 reads 1.7 GiB a second and file here, files side by side, from the page
cache: some 10 s for a checkpoint of 32 GiB (an 8B model in bfloat16, two moments of 8 bits).
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lrk.recipe.prepared import in_parallel, sha256_of

MANIFEST_FILE = "manifest.json"


def write_manifest(checkpoint: Path, run: Mapping[str, Any]) -> None:
    """Note what a complete checkpoint holds.

    Args:
        run: what identifies the run, by key, as JSON takes it.
    """
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    noted = {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(files, in_parallel(sha256_of, files), strict=True)
    }
    content = json.dumps({"run": run, "files": noted}, indent=1) + "\n"
    (checkpoint / MANIFEST_FILE).write_text(content, encoding="utf-8")


def run_of(checkpoint: Path) -> dict[str, Any]:
    """What identifies the run of a checkpoint without `fault`."""
    return json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))["run"]


def fault(checkpoint: Path) -> str | None:
    """The first thing in which a checkpoint is not what its manifest says, or None.

    Every file is read; again in one process only if it has changed.
    """
    try:
        content = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))
        dict(content["run"])
        files = {name: (file["bytes"], file["sha256"]) for name, file in content["files"].items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST_FILE}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST_FILE} is damaged"
    for name, (size, _) in files.items():
        if not (checkpoint / name).is_file():
            return f"it has no {name}"
        if (found := (checkpoint / name).stat().st_size) != size:
            return f"its {name} has {found:,} bytes in place of {size:,}"
    hashes = in_parallel(_hash, [checkpoint / name for name in files])
    for (name, (_, expected)), found in zip(files.items(), hashes, strict=True):
        if found != expected:
            return f"its {name} is damaged: its hash is not that of {MANIFEST_FILE}"
    return None


def _hash(path: Path) -> str:
    state = path.stat()
    return _hash_of_state(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash_of_state(path: Path, size: int, modified: int) -> str:
    return sha256_of(path)

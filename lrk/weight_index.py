"""The index of a model in several files: which of them holds each tensor."""

import json
from pathlib import Path

INDEX = "model.safetensors.index.json"


def read_index(folder: Path) -> dict[str, str] | None:
    """The file of each tensor, by its name; None where a folder has no index.

    Raises:
        ValueError: if it is damaged, or names a file that does not lie in the folder itself.
    """
    file = folder / INDEX
    if not file.is_file():
        return None
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        named = set(weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is no index of safetensors files: {error!r}") from error
    for name in named:
        # A path would make of a download a reader of whatever lies elsewhere on the disk.
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise ValueError(
                f"{file} names {name!r}, which is no name of a file in the same folder"
            )
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}, which its {INDEX} names")
    return weight_map

"""The folder of a search: its files, and whether it holds this search or another one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrk.atomic import remove, remove_temporaries
from lrk.sealed import read_sealed, write_sealed

FACTORS = "rope_factors.json"
TRIALS = "trials.json"
_SETTINGS = "settings.json"
# The settings stand last: what is left of a search whose deletion is interrupted has its name.
_FILES = (FACTORS, TRIALS, _SETTINGS)
_HELP = "choose another folder or overwrite_output_dir"


def clear(folder: Path, overwrite: bool) -> None:
    """Delete what a killed process left half written, and what is to be overwritten."""
    remove_temporaries(folder)
    if overwrite:
        for name in _FILES:
            remove(folder / name)


def check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a folder holds a search with other settings, or nobody can say which.

    Args:
        settings: as many as are known.
    """
    file = folder / _SETTINGS
    if not file.is_file():
        left = [name for name in _FILES if (folder / name).exists()]
        if left:
            raise ValueError(
                f"output_dir {str(folder)!r} holds {left[0]} without {_SETTINGS}, which says of "
                f"what it is: {_HELP}"
            )
        return
    old = read_sealed(file, _HELP)
    different = [
        f"{name} was {old.get(name)!r} and is {value!r}"
        for name, value in settings.items()
        if old.get(name) != value
    ]
    if different:
        raise ValueError(
            f"output_dir {str(folder)!r} holds a search with other settings "
            f"({'; '.join(different)}): {_HELP}"
        )


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a search that is new, or check that the one there is this one.

    Raises:
        ValueError: as `check_folder`.
    """
    check_folder(folder, settings)
    if not (folder / _SETTINGS).is_file():
        write_sealed(folder / _SETTINGS, settings)

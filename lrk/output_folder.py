"""Whether what a command is asked to write can be written, known before any work starts."""

import os
import tempfile
from pathlib import Path


def check_output_dir(path: str | Path, argument: str = "output_dir") -> None:
    """Raise `ValueError` unless `path` is a folder, or can become one, in which files can be made.

    Nothing is left behind. A full disk, which shows when the bytes are written, is not foreseen.
    """
    folder = Path(path)
    what = f"{argument} {str(path)!r}"
    try:
        if folder.is_symlink() and not folder.exists():
            raise ValueError(f"{what} is a link to {str(folder.readlink())!r}, which is not there")
        nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        if not nearest.is_dir():
            part = "" if nearest == folder else f" lies in {str(nearest)!r}, which"
            raise ValueError(f"{what}{part} is a file; it must be a folder")
        # What the owner's rights allow, a file system that is read-only may not.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ValueError(f"{what} cannot be written to: {reason}") from error


def check_output_file(path: Path, argument: str) -> None:
    """Raise `ValueError` unless a file can be made at `path`, in a folder that is there."""
    if path.is_dir():
        raise ValueError(f"{argument} {str(path)!r} is a folder; it must be a file")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{argument} {str(path)!r} lies in no folder that is there")
    check_output_dir(path.absolute().parent, f"the folder of {argument}")

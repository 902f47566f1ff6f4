"""The folder of what a command computes, with the settings that it follows from.

A command that is run again goes on in its folder, and takes nothing there for its own that was
computed with other settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrk.atomic import remove, remove_temporaries
from lrk.sealed import read_sealed, write_sealed

_SETTINGS = "settings.json"
_HELP = "choose another folder or overwrite_output_dir"


@dataclass(frozen=True)
class SettingsFolder:
    """A folder, and what may lie in it.

    Attributes:
        path: of the folder, the command's `output_dir`.
        names: of the files and folders that the command writes, but for the settings.
        holds: what they are together, for messages: "an analysis".
    """

    path: Path
    names: tuple[str, ...]
    holds: str

    @property
    def _all(self) -> tuple[str, ...]:
        # The settings stand last: what is left where a deletion is interrupted has their name.
        return (*self.names, _SETTINGS)

    def clear(self, overwrite: bool) -> None:
        """Delete what a killed process left half written, and what is to be overwritten."""
        remove_temporaries(self.path)
        if overwrite:
            for name in self._all:
                remove(self.path / name)

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise `ValueError` if it holds what has other settings, or nobody can say which.

        Args:
            settings: as many as are known.
        """
        if not (self.path / _SETTINGS).is_file():
            left = [name for name in self._all if (self.path / name).exists()]
            if left:
                raise ValueError(
                    f"output_dir {str(self.path)!r} holds {left[0]} without {_SETTINGS}, which says"
                    f" of what it is: {_HELP}"
                )
            return
        old = read_sealed(self.path / _SETTINGS, _HELP)
        different = [
            f"{name} was {old.get(name)!r} and is {value!r}"
            for name, value in settings.items()
            if old.get(name) != value
        ]
        if different:
            raise ValueError(
                f"output_dir {str(self.path)!r} holds {self.holds} with other settings "
                f"({'; '.join(different)}): {_HELP}"
            )

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of what is new, or check that what is there has these.

        Raises:
            ValueError: as `check`.
        """
        self.check(settings)
        if not (self.path / _SETTINGS).is_file():
            write_sealed(self.path / _SETTINGS, settings)

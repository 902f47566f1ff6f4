"""Which releases of other packages lrk was tested with, which are installed, and what is refused.

The tested ranges are those of pyproject.toml, to which pip keeps. Whoever installs otherwise learns
from `python -m lrk.env` what lies outside of them, and `import lrk` refuses what computes wrongly.
"""

import platform
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

_PROJECT = Path(__file__).parents[1] / "pyproject.toml"  # of a checkout

FLOORS = {
    "torch": (
        "2.11",
        "before 2.10 it cannot add a bfloat16 product to a float32 gradient on a GPU, before 2.9 "
        "its attention with grouped heads corrupts memory on a CPU",
    ),
    "triton": ("3.6", "older compilers break or spill lrk's kernels"),
}
_NO_TRITON = "Triton has builds for Linux alone; Windows runs it in WSL 2, macOS in a container"


def installed_version(package: str) -> str | None:
    """The version of a package, of PyTorch with its build, as in 2.13.0+cu130; None if not there.

    lrk has one also where it runs from a checkout that is not installed.
    """
    if package == "lrk":
        import lrk

        return lrk.__version__
    if package == "torch":
        import torch

        return str(torch.__version__)
    if package == "triton":  # whose builds bear several names as packages
        try:
            import triton
        except ImportError:
            return None
        return str(triton.__version__)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def tested_ranges() -> dict[str, SpecifierSet]:
    """Of Python, and by package; those of the extras too, but not of what develops lrk.

    Empty where lrk is neither installed nor in its checkout.
    """
    project = {}
    if _PROJECT.is_file():
        project = tomllib.loads(_PROJECT.read_text(encoding="utf-8")).get("project", {})
    if project.get("name") == "lrk":
        extras = {**project["optional-dependencies"], "dev": []}
        lines = sum(extras.values(), project["dependencies"])
        python = project["requires-python"]
    else:
        try:
            lines = [x for x in metadata.requires("lrk") or [] if 'extra == "dev"' not in x]
            python = metadata.metadata("lrk")["Requires-Python"]
        except metadata.PackageNotFoundError:
            return {}
    required = [Requirement(line) for line in lines]
    ranges = {each.name.lower(): each.specifier for each in required if each.specifier}
    return {"python": SpecifierSet(python), **ranges}


def pip_install(*packages: str) -> str:
    """The command that installs what an extra of lrk would, in the releases that were tested.

    It needs neither lrk's checkout nor its wheel: `pip install "torchao>=0.15,<0.19"`.
    """
    tested = tested_ranges()
    return "pip install " + " ".join(f'"{name}{_written(tested.get(name))}"' for name in packages)


def _written(tested: SpecifierSet | None) -> str:
    """A range as pyproject.toml has it, its lower end first."""
    return ",".join(sorted(map(str, tested or ()), reverse=True))


def outside_tested_ranges() -> dict[str, str]:
    """Of the installed packages and Python, those whose release was not tested, and the range."""
    outside = {}
    for package, tested in tested_ranges().items():
        is_python = package == "python"
        installed = platform.python_version() if is_python else installed_version(package)
        if installed is not None and not tested.contains(installed, prereleases=True):
            outside[package] = str(tested)
    return outside


def check_floors() -> None:
    """Raise `ImportError` for a release that is known to compute wrong things or not to work.

    Likewise without Triton, whose kernels lrk imports also where none of them runs.
    """
    for package, (floor, reason) in FLOORS.items():
        installed = installed_version(package)
        if installed is None:
            raise ImportError(
                f"lrk needs {package} {floor} or newer, and none is installed: {_NO_TRITON}"
            )
        if Version(installed).release < Version(floor).release:
            raise ImportError(
                f"lrk needs {package} {floor} or newer, and {installed} is installed: {reason}"
            )

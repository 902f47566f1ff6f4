"""Builds `libcuda.c`, the stand-in for NVIDIA's driver."""

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import resources
from pathlib import Path

NAME = "libcuda.so.1"
ROOT = Path(__file__).parents[3]


def why_not() -> str | None:
    """What this machine lacks for the stand-in and for Triton's launcher over it, if anything."""
    if sys.platform != "linux":
        return f"the stand-in for {NAME} needs Linux"
    if compiler() is None:
        return "no C compiler, which Triton's launcher needs"
    if not Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").is_file():
        return "no headers of Python, which Triton's launcher needs"
    return None


def compiler() -> str | None:
    """The one that Triton takes."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def build(folder: Path) -> dict[str, str]:
    """Compile the stand-in into `folder`, and return the environment of a process over it."""
    command = compiler()
    assert command is not None
    include = resources.files("triton.backends.nvidia") / "include"
    options = ["-shared", "-fPIC", "-Wall", "-Werror", f"-Wl,-soname,{NAME}", f"-I{include}"]
    source = Path(__file__).with_name("libcuda.c")
    subprocess.run([command, *options, str(source), "-o", str(folder / NAME)], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    others = environment.get("LD_LIBRARY_PATH")
    return environment | {
        "LD_LIBRARY_PATH": f"{folder}:{others}" if others else str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        "PYTHONPATH": str(ROOT),
    }

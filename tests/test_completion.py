"""Completion by shtab, driven in a bash."""

import shutil
import subprocess
import sys

import pytest

from lrk.command_line import completion
from lrk.data import command as data
from lrk.merge import command as merge
from lrk.plan import command as plan
from lrk.train.command import main
from lrk.train.parser import parse
from lrk.train.presets import preset_names

BASH = shutil.which("bash")
# What readline does: the words so far, and the function that `complete` names.
ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
function=$(complete -p "$1" | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
"$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""

pytestmark = pytest.mark.skipif(BASH is None, reason="no bash here")


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    pytest.importorskip("shtab")
    folder = tmp_path_factory.mktemp("completion")
    scripts = {
        "lrk-plan": completion(plan.parser(), "bash"),
        "lrk-data": completion(data.parser(), "bash"),
        "lrk-merge": completion(merge.parser(), "bash"),
    }
    for name, script in scripts.items():
        (folder / name).write_text(script)

    def ask(*words: str) -> list[str]:
        asked = subprocess.run(
            [str(BASH), "-c", ASK, "bash", str(folder / words[0]), *words],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        return asked.stdout.split()

    return ask


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lrk-plan", "--gpu", "h"], ["h100", "h200"]),
        (["lrk-plan", "--tile"], ["--tile_tokens"]),
        (["lrk-data", "pre"], ["prepare"]),
        (["lrk-data", "rope", "--pop"], ["--population"]),
        (["lrk-merge", "slerp", "--t"], ["--t"]),
    ],
)
def test_options_choices_and_subcommands_complete(completed, words, expected):
    assert completed(*words) == expected


def test_presets_and_files_complete(tmp_path, capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit, match="0"):
        parse(["--print_completion", "bash"])
    (tmp_path / "lrk-train").write_text(capsys.readouterr().out)
    (tmp_path / "llama-mine.yaml").touch()
    (tmp_path / "llama.txt").touch()

    def ask(*words: str) -> set[str]:
        command = [str(BASH), "-c", ASK, "bash", str(tmp_path / "lrk-train"), "lrk-train", *words]
        asked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
        return set(asked.stdout.split())

    llamas = {name for name in preset_names() if name.startswith("llama")}
    assert ask("llama") == {*llamas, "llama-mine.yaml"}
    assert "--lora_rank" in ask("llama-3-8b-131072", "--lora")
    assert "--weight_decay" in ask("--weight_")  # transformers' own, which --help leaves out


def test_zsh_names_presets_too(capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit, match="0"):
        parse(["--print_completion", "zsh"])
    script = capsys.readouterr().out
    assert script.startswith("#compdef lrk-train")
    assert "compadd -- llama-2-7b-32768-cream" in script


def test_without_shtab_a_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print_completion", "bash"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lrk-train: print_completion needs shtab, which is not installed")

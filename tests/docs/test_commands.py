"""Commands and options that prose names exist; those of blocks are in `test_blocks.py`."""

import importlib.util
import re
import shlex
from functools import cache

import pytest

from tests.docs.commands import MAINS, MODULES, check_module, check_pip, check_pytest
from tests.docs.markdown import ROOT, Inline, pages, spans
from tests.docs.parsing import flags, module, reads_arguments

_COMMAND = re.compile(r"lrk-\w+( |$)|(make|torchrun|pytest|pip install|python -m) ")
FOREIGN = {"http.server", "venv"}
_FLAG = re.compile(r"--?[A-Za-z][\w.-]*")
SUBCOMMANDS = {
    "lrk-data": ("prepare", "assemble", "select", "analyze", "rope"),
    "lrk-merge": ("linear", "slerp", "task_arithmetic"),
}
COMMANDS = [span for page in pages() for span in spans(page) if _COMMAND.match(span.text)]


@cache
def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text()
    return set(" ".join(re.findall(r"^([\w. -]+):(?!=)", makefile, re.MULTILINE)).split())


@cache
def flags_of(program: str, subcommand: str) -> set[str]:
    if program == "torchrun":
        return flags(module("torch.distributed.run"))
    if program in MAINS:
        # Help is not asked for, nor is nothing: both may be answered without a parser.
        words = [subcommand] * bool(subcommand) + ["--unknown"]
        known = flags(lambda: MAINS[program](words), subcommand)
        if program == "lrk-train":
            known |= flags(lambda: MAINS[program](["--recipe", "auto"]))
        return known
    return flags(module(program))


@pytest.mark.parametrize("span", COMMANDS, ids=str)
def test_command_of_prose(span: Inline):
    program, *words = shlex.split(span.text)
    if program == "python":
        program, *words = words[1:]
        first, *others = [*MODULES.get(program, [program])]
        program, words = first, [*others, *words]
    if program == "make":
        assert set(words) <= targets(), f"{span}: {span.text}: no such target"
    elif program == "pip":
        check_pip(words)
    elif program == "pytest":
        check_pytest(words)
    elif program == "torchrun":
        check_flags(span, "torchrun", "", words)
    elif program in MAINS:
        chosen = [word for word in words[:1] if word in SUBCOMMANDS.get(program, ())]
        if program in SUBCOMMANDS and words and not words[0].startswith("-"):
            assert chosen, f"{span}: {span.text}: no such subcommand"
        check_flags(span, program, "".join(chosen), words)
    elif program in FOREIGN:
        assert importlib.util.find_spec(program)
    elif reads_arguments(program):
        check_flags(span, program, "", words)
    else:
        assert check_module(program, words) == 0


def check_flags(span: Inline, program: str, subcommand: str, words: list[str]) -> None:
    given = {word.partition("=")[0] for word in words if _FLAG.match(word)}
    given = {re.sub(r"^--stages\.\w+\.", "--", flag).replace("-", "_") for flag in given}
    if given:
        unknown = given - flags_of(program, subcommand)
        assert not unknown, f"{span}: {span.text}: {program} does not know {', '.join(unknown)}"

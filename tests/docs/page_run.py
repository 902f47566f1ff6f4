"""The blocks of one page, run from top to bottom in one folder and one namespace."""

import builtins
import contextlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from transformers import DefaultFlowCallback

from tests.docs.commands import Commands, check_keys
from tests.docs.markdown import Block, blocks
from tests.docs.shell import Shell
from tests.docs.stand_ins import CONFIGURATION, StandIns

_LITERAL = re.compile(r"(\w*)\s*=?\s*[\"']([\w./-]+)[\"']")
_FILE_NAME = re.compile(r"# ([\w./-]+\.ya?ml)\b")
_PRINTED = re.compile(r" *print\(.*\)\s+# (not )?(-?[\d.]+)(?=$|:| )")
# Not in every stack of constraints/.
_OPTIONAL = re.compile(r"^ *(?:from|import) (?:lrk\.)?(trl)\b", re.MULTILINE)
# What torchrun sets for a process that is alone.
_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


class PageRun:
    """Runs each block once, and those before it first: a page's files and names build up."""

    def __init__(
        self, page: str, folder: Path, stand_ins: StandIns, commands: Commands, shell: Shell
    ) -> None:
        self._blocks, self._folder = blocks(page), folder
        self._stand_ins, self._commands, self._shell = stand_ins, commands, shell
        self._faults: dict[Block, AssertionError | None] = {}
        self._names: dict[str, Any] = {"__name__": page}
        self._configuration = CONFIGURATION
        stand_ins.set_up(folder)

    def check(self, block: Block) -> None:
        """Run up to `block`; raise what went wrong in it, not before it, or skip it."""
        for each in self._blocks[: self._blocks.index(block) + 1]:
            if each not in self._faults and not absent_packages(each):
                self._faults[each] = self.fault(each)
        if absent := absent_packages(block):
            pytest.skip(f"needs {', '.join(absent)}, which this stack has not")
        fault = self._faults[block]
        if fault is not None:
            raise fault

    def fault(self, block: Block) -> AssertionError | None:
        """What goes wrong in a block, which need not stand in the page, run here and now."""
        try:
            if block.language == "bash":
                self._shell.run(block.text, self._folder)
            elif block.language == "python":
                self._run_python(block)
            elif block.language == "yaml":
                self._run_yaml(block)
        except (AssertionError, ValueError) as error:
            return AssertionError(f"{block}: {error}")
        return None

    def _run_python(self, block: Block) -> None:
        """Compares what `print(...)  # 0.5` and `print(...)  # not 0` say with what is printed."""
        for keyword, literal in _LITERAL.findall(block.text):
            if keyword != "output_dir":
                self._stand_ins.provide(literal, self._folder)
        # Lines of the page in the traceback.
        code = compile("\n" * block.line + block.text, block.page, "exec")
        printed: dict[int, str] = {}

        def record(*values: object, **options: Any) -> None:
            printed[sys._getframe(1).f_lineno] = " ".join(map(str, values))

        variables = _ALONE if "init_process_group" in block.text else {}
        try:
            with (
                contextlib.chdir(self._folder),
                patch.object(builtins, "print", record),
                patch.dict(os.environ, variables),
                _one_step_of_a_trainer(),
            ):
                exec(code, self._names)
        except Exception:
            raise AssertionError(traceback.format_exc()) from None
        for number, line in enumerate(block.text.splitlines(), block.line + 1):
            if said := _PRINTED.match(line):
                found = float(re.sub(r"tensor\(([^,)]*).*", r"\1", printed[number]))
                same = round(found, 4) == round(float(said[2]), 4)
                assert same != bool(said[1]), (
                    f"{block.page}:{number}: {line.strip()} prints {found}"
                )

    def _run_yaml(self, block: Block) -> None:
        """Try the file that the first line names, or a piece of the one above."""
        content = yaml.safe_load(block.text)
        assert isinstance(content, dict), "it is no mapping"
        named = _FILE_NAME.match(block.text)
        path = self._folder / (named[1] if named else "piece.yaml")
        if not named:
            path.write_text(yaml.safe_dump(self._configuration | content))
            with contextlib.chdir(self._folder):
                check_keys(path)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        self._configuration = content
        self._commands.check_configuration(named[1], self._folder)


def absent_packages(block: Block) -> list[str]:
    """Packages that a block of Python imports and this stack may lack, where it does."""
    names = set(_OPTIONAL.findall(block.text)) if block.language == "python" else set()
    return sorted(name for name in names if importlib.util.find_spec(name) is None)


@contextlib.contextmanager
def _one_step_of_a_trainer() -> Iterator[None]:
    """A `Trainer` of any kind stops after its first step."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True
        return control

    with patch.object(DefaultFlowCallback, "on_step_end", on_step_end):
        yield

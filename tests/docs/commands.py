"""How each command of the documentation is tried.

| program | what is done with it |
|---|---|
| `lrk-train` | runs, shortened by the options of `SHORT` behind its own, which they beat |
| `lrk-eval`, `lrk-data`, `lrk-merge` | run, shortened alike |
| `lrk-plan` | its model is found; then it runs for a small model and few tokens |
| `torchrun`, `accelerate launch` | their own parsers read them, and lrk's the command they launch |
| `python -m MODULE` | as the command if it is one of lrk; else its parser reads the words alone |
| `pytest`, `python -m pytest` | paths exist |
| `make` | targets exist: `make --dry-run` |
| `pip install` | requirements fit `pyproject.toml`, extras and files exist |
| `git clone`, `hf auth login`, `pre-commit install`, `ray job submit` | by the functions below |

Everything else is not found by bash, and the test fails.
"""

import contextlib
import importlib
import io
import itertools
import re
import subprocess
import tomllib
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from packaging.requirements import InvalidRequirement, Requirement

from lrk.data.command import main as lrk_data
from lrk.eval.command import main as lrk_eval
from lrk.eval.parser import parse as parse_eval
from lrk.merge import main as lrk_merge
from lrk.plan.command import main as lrk_plan
from lrk.plan.configs import load_config
from lrk.train.command import main as lrk_train
from lrk.train.parser import parse as parse_train
from lrk.train.stages import parse_stages
from tests.docs.markdown import ROOT
from tests.docs.parsing import accepts, module, reads_arguments
from tests.docs.shell import Answer
from tests.docs.stand_ins import ONE_LAYER, SURE, StandIns

MAINS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "lrk-train": lrk_train,
    "lrk-data": lrk_data,
    "lrk-eval": lrk_eval,
    "lrk-merge": lrk_merge,
    "lrk-plan": lrk_plan,
}
# `python -m` names the same.
MODULES = {
    "lrk.train.command": ["lrk-train"],
    "lrk.eval.command": ["lrk-eval"],
    "lrk.plan.command": ["lrk-plan"],
    "lrk.data": ["lrk-data"],
    "lrk.data.command": ["lrk-data"],
    "lrk.merge": ["lrk-merge"],
    "lrk.analysis": ["lrk-data", "analyze"],
    "lrk.longrope": ["lrk-data", "rope"],
}
# What makes a command of hours one of a second: each row whose words a command has.
SHORT = {
    ("lrk-train",): "--max_steps 1 --train_length 64 --per_device_train_batch_size 1 "
    "--gradient_accumulation_steps 1 --optim adamw_torch --dtype float32 --eval_samples 4 "
    "--disable_tqdm true",
    # A model of four pairs, and factors that were found for it.
    ("lrk-train", "--rope_critical_dimension"): "--rope_critical_dimension 2",
    ("lrk-train", "--rope_factors"): "--target_length 2112",
    ("lrk-eval",): "--lengths 1024 2048 --trials 1 --short_context 256 --short_stride 128 "
    "--device cpu",
    ("lrk-data", "prepare"): "--num_proc 1",
    ("lrk-data", "select"): "--target_length 256 --train_length 64 --num_proc 1",
    ("lrk-data", "assemble"): "--target_length 4096 --num_proc 1",
    ("lrk-data", "analyze"): "--length 40 --samples 64 --min_lift 0.2 --short_context 16 "
    "--short_stride 8 --device cpu",
    ("lrk-data", "--extend_steps"): "--extend_steps 1",
    ("lrk-data", "rope"): "--target_length 2112 --samples 1 --population 4 --iterations 1 "
    "--device cpu",
    ("lrk-plan",): f"--model {ONE_LAYER}",
    ("lrk-plan", "--length"): "--length 512",
    ("lrk-plan", "--target_length"): "--target_length 16384",
    ("lrk-plan", "--fit"): "--fit 1GiB",
    ("lrk-plan", "--fit", "--tile_tokens"): "--tile_tokens 65536",
}
# Questions that are answered and not run.
ASKS = {"--help", "-h", "--version", "--print_completion", "--print_preset"}
PIP_OPTIONS = {"-e", "--editable", "-U", "--upgrade", "-q", "--quiet", "--no-deps"}
WRITES = {"--json", "--plot"}


class Commands:
    """Answers the programs of a block, in the working folder of a page."""

    def __init__(self, stand_ins: StandIns) -> None:
        self._stand_ins = stand_ins
        # Several pages show the same ones.
        self._plans: dict[tuple[str, ...], Answer] = {}
        self._others: dict[str, Callable[[list[str], Path], None]] = {
            "torchrun": _torchrun,
            "accelerate": _accelerate,
            "make": _make,
            "pip": lambda words, folder: check_pip(words),
            "pytest": lambda words, folder: check_pytest(words),
            "git": _git,
            "hf": _hf,
            "pre-commit": _pre_commit,
        }

    def programs(self) -> list[str]:
        return [*MAINS, *self._others, "python", "python3.11", "ray"]

    def answer(self, words: list[str], folder: Path) -> Answer:
        """Try one command; a fault of the test or of lrk is told as a failed command is."""
        try:
            return self._tried(words, folder)
        except Exception:
            return Answer(1, error=f"{' '.join(words)}\n{traceback.format_exc(limit=-4)}")

    def check_configuration(self, file: str, folder: Path) -> None:
        """A dry run of the command that reads the file."""
        words = ["--dry_run", "--output_dir", "outputs/not-made"]
        answer = self.answer([_reader(folder / file), file, *words], folder)
        assert answer.status == 0, answer.error

    def _tried(self, words: list[str], folder: Path) -> Answer:
        program, *others = words
        for before, word in itertools.pairwise(words):
            if before.replace("-", "_") != "__output_dir":
                self._stand_ins.provide(word, folder)
        if program in MAINS:
            return self._lrk(words, folder)
        if program.startswith("python"):
            return self._python(others, folder)
        if program == "ray":
            return self._tried(_submitted(others), folder)
        return ran(words, lambda: self._others[program](others, folder))

    def _python(self, words: list[str], folder: Path) -> Answer:
        assert words[:1] == ["-m"], f"python {' '.join(words)}: only python -m is known here"
        name, *others = words[1:]
        if name in MODULES:
            return self._lrk([*MODULES[name], *others], folder)
        if name in self._others:
            return self._tried([name, *others], folder)
        if name == "venv":
            return Answer(0)
        return ran(words, lambda: check_module(name, others))

    def _lrk(self, words: list[str], folder: Path) -> Answer:
        if words[0] == "lrk-plan" and WRITES.isdisjoint(words):
            if tuple(words) not in self._plans:
                self._plans[tuple(words)] = _run(words, folder)
            return self._plans[tuple(words)]
        return _run(words, folder)


def check_keys(path: Path) -> None:
    """The command that reads the file knows its keys and values."""
    if _reader(path) == "lrk-eval":
        parse_eval([str(path)])
    elif parse_stages([str(path)]) is None:
        parse_train([str(path)])


def _reader(path: Path) -> str:
    return "lrk-eval" if "tasks" in yaml.safe_load(path.read_text()) else "lrk-train"


def _run(words: list[str], folder: Path) -> Answer:
    program, *others = words
    with contextlib.chdir(folder):
        if ASKS.isdisjoint(others):
            others += shortened(words)
        return ran(words, lambda: MAINS[program](others))


def shortened(words: Sequence[str]) -> list[str]:
    """The options that stand behind those of a command to make it short."""
    if words[0] == "lrk-plan":
        load_config(words[words.index("--model") + 1])
    options = " ".join(more for row, more in SHORT.items() if set(row) <= set(words)).split()
    if words[1:2] == ["analyze"] and not {"--extended", "--extend_steps"} & set(words):
        options += ["--model", SURE]
    return options


def ran(words: Sequence[str], run: Callable[[], int | None]) -> Answer:
    """What a command says and ends with, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run() or 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
    return Answer(status, out.getvalue(), f"{' '.join(words)}\n{err.getvalue()}")


def check_module(name: str, words: Sequence[str]) -> int:
    """The status with which a module refuses `words`; one without a parser takes none."""
    if reads_arguments(name):
        return accepts(module(name, words))
    assert not words, f"python -m {name} takes no arguments, and is given {words}"
    importlib.import_module(name)
    return 0


def check_pytest(words: Sequence[str]) -> None:
    asked = iter(words)
    for word in asked:
        if word in ("-m", "-k", "-n", "--numprocesses"):
            next(asked)
        elif not word.startswith("-"):
            _exists(word.partition("::")[0])


def check_pip(words: Sequence[str]) -> None:
    assert words[0] == "install", f"pip {words[0]}: only install is known here"
    asked = iter(words[1:])
    for word in asked:
        if word in ("-c", "--constraint", "-r", "--requirement"):
            _exists(next(asked))
        elif word.startswith("-"):
            assert word in PIP_OPTIONS, f"pip install {word} is not known here"
        else:
            _check_requirement(word)


def _check_requirement(word: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    if match := re.fullmatch(r"(?:\.|(?:dist/)?lrk-[^\[\]/]+\.whl)(?:\[([^\]]+)\])?", word):
        asked = Requirement(f"lrk[{match[1] or ''}]")
    else:
        try:
            asked = Requirement(word)
        except InvalidRequirement as error:
            raise AssertionError(f"pip install {word}: {error}") from error
    if asked.name == project["name"]:
        unknown = ", ".join(sorted(asked.extras - extras.keys()))
        assert not unknown, f"pip install {word}: lrk has no extra {unknown}"
        return
    needed = map(Requirement, itertools.chain(project["dependencies"], *extras.values()))
    ranges = [each.specifier for each in needed if each.name == asked.name]
    pinned = [each.version for each in asked.specifier if each.operator == "=="]
    fits = not asked.specifier or any(
        asked.specifier == each or (pinned and each.contains(pinned[0])) for each in ranges
    )
    assert fits or not ranges, f"pip install {word}: pyproject.toml has {asked.name} {ranges}"


def _exists(path: str) -> None:
    assert (ROOT / path).exists(), f"there is no {path} in the repository"


def _torchrun(words: list[str], folder: Path) -> int:
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(words)
    assert parsed.module, "it launches a file, not a module"
    return _check_launched(parsed.training_script, parsed.training_script_args, folder)


def _accelerate(words: list[str], folder: Path) -> int:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch", f"accelerate {words[0]}: only launch is known here"
    parsed = launch_command_parser().parse_args(words[1:])
    if parsed.config_file is not None:
        load_config_from_file(str(ROOT / parsed.config_file))
    if parsed.module:
        return _check_launched(parsed.training_script, parsed.training_script_args, folder)
    assert (folder / parsed.training_script).exists(), f"there is no {parsed.training_script}"
    return 0


def _check_launched(name: str, words: list[str], folder: Path) -> int:
    """What would run in several processes: its arguments are read."""
    if name not in MODULES:
        return check_module(name, words)
    program, *first = MODULES[name]
    with contextlib.chdir(folder):
        return accepts(lambda: MAINS[program]([*first, *words]))


def _make(words: list[str], folder: Path) -> None:
    command = ["make", "--dry-run", "--no-print-directory", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _git(words: list[str], folder: Path) -> None:
    command, address = words
    assert command == "clone"
    (folder / address.rstrip("/").rpartition("/")[2].removesuffix(".git")).mkdir()


def _hf(words: list[str], folder: Path) -> None:
    assert words == ["auth", "login"]


def _pre_commit(words: list[str], folder: Path) -> None:
    assert words == ["install"]


def _submitted(words: list[str]) -> list[str]:
    """The command of a job of Ray."""
    assert words[:2] == ["job", "submit"], f"ray {' '.join(words)}: only job submit is known here"
    return words[words.index("--") + 1 :]

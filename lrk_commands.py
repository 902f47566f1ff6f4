"""Where `lrk-train` and the other commands start: answers that are files come at once.

`import lrk` registers an attention backend with transformers, which takes seconds. Help, the
version and the presets need none of it, so this module lies beside the package: what it does not
answer goes to the command's own `main`, whose answers are the same. The files are those of
`lrk/help`, made from the parsers by `python -m lrk.help_pages`, and of `configs`.
"""

import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module, metadata, util
from pathlib import Path


def train() -> int:
    """`lrk-train`."""
    return _start("lrk-train", "lrk.train.command")


def plan() -> int:
    """`lrk-plan`."""
    return _start("lrk-plan", "lrk.plan.command")


def evaluate() -> int:
    """`lrk-eval`."""
    return _start("lrk-eval", "lrk.eval.command")


def data() -> int:
    """`lrk-data`."""
    return _start("lrk-data", "lrk.data.command")


def merge() -> int:
    """`lrk-merge`."""
    return _start("lrk-merge", "lrk.merge.command")


def answer(program: str, words: Sequence[str]) -> str | None:
    """What a command line asks that files answer; None for anything else."""
    if "--version" in words:
        return f"lrk {metadata.version('lrk')}\n"
    if "--help" in words or "-h" in words:
        subcommand = f"{program} {words[0]}"
        return _page(subcommand) or _page(program)
    if program == "lrk-train" and "--list_presets" in words:
        return _page("presets")
    if program == "lrk-train" and len(words) == 2 and words[1] == "--print_preset":
        return _read(_package() / "configs" / f"{words[0]}.yaml")
    return None


def _start(program: str, module: str) -> int:
    words = sys.argv[1:]
    what_to_type = _page("what-to-type" if program == "lrk-train" else program)
    if not words and what_to_type:
        sys.stderr.write(what_to_type)
        return 2
    found = answer(program, words)
    if found is None:
        return _main_of(program, module)()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` has enough, and is no fault
    sys.stdout.write(found)
    return 0


def _main_of(program: str, module: str) -> Callable[[], int]:
    try:
        main: Callable[[], int] = import_module(module).main
        return main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "lrk":
            raise
        sys.stderr.write(
            f"{program}: {error.name} is not installed; it comes with lrk's extra `train`, as in "
            '`pip install ".[train]"` in a checkout\n'
        )
        sys.exit(2)


def _page(name: str) -> str | None:
    return _read(_package() / "help" / f"{name.replace(' ', '-')}.txt")


def _read(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _package() -> Path:
    """The folder of lrk, which is not imported."""
    found = util.find_spec("lrk")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent

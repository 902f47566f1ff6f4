"""Blocks of commands as bash runs them, with programs that ask the tests what to do.

Bash does the quoting, patterns, variables, loops and redirections. Its `PATH` holds one folder, in
which each program of the documentation is a script that hands its words to the tests and waits.
"""

import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

# Harmless, and what they do is what a block is about.
REAL = ("cat", "cp", "head", "ls", "mkdir", "seq", "sh", "tail")

_PROGRAM = """#!{bash}
{{ printf '%d\\0' $(($# + 2)); printf '%s\\0' "${{0##*/}}" "$PWD" "$@"; }} > '{folder}/requests'
read -r status < '{folder}/answers'
printf '%s' "$(<'{folder}/output')"
exit "$status"
"""


class Answer(NamedTuple):
    """The status that a program ends with, and what it prints."""

    status: int
    output: str = ""
    error: str = ""


class Shell:
    """Runs scripts in which `programs` are answered by `answer(words, working folder)`."""

    def __init__(
        self,
        folder: Path,
        programs: Iterable[str],
        answer: Callable[[list[str], Path], Answer],
        variables: Mapping[str, str],
    ) -> None:
        bash = shutil.which("bash")
        assert bash is not None
        self._bash, self._folder, self._answer = bash, folder, answer
        self._environment = {"PATH": str(folder / "bin"), "LC_ALL": "C.UTF-8", **variables}
        (folder / "bin").mkdir(parents=True)
        for program in programs:
            path = folder / "bin" / program
            path.write_text(_PROGRAM.format(bash=bash, folder=folder))
            path.chmod(0o755)
        for program in REAL:
            found = shutil.which(program)
            assert found is not None, program
            (folder / "bin" / program).symlink_to(found)
        for name in ("requests", "answers"):
            os.mkfifo(folder / name)

    def run(self, script: str, folder: Path, seconds: float = 120) -> None:
        """Run a script in a folder up to its first command that fails.

        Raises:
            AssertionError: with what it printed, if one failed, or if it took too long.
        """
        # Open at both ends, so that neither side waits for the other one to open.
        requests = os.open(self._folder / "requests", os.O_RDWR)
        answers = os.open(self._folder / "answers", os.O_RDWR)
        printed = self._folder / "printed"
        failed = ""
        deadline = time.monotonic() + seconds
        try:
            with (
                printed.open("w") as out,
                subprocess.Popen(
                    [self._bash, "-euo", "pipefail", "-c", script],
                    cwd=folder,
                    env=self._environment | {"HOME": str(folder)},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                ) as process,
            ):
                while process.poll() is None:
                    if time.monotonic() > deadline:
                        process.kill()
                        failed = f"it took more than {seconds:.0f} s"
                    elif select.select([requests], [], [], 0.02)[0]:
                        answer = self._answered(_words(requests))
                        (self._folder / "output").write_text(answer.output)
                        os.write(answers, f"{answer.status}\n".encode())
                        failed = answer.error if answer.status else failed
        finally:
            os.close(requests)
            os.close(answers)
        last = "\n".join(printed.read_text().splitlines()[-10:])
        assert process.returncode == 0, failed or last

    def _answered(self, words: list[str]) -> Answer:
        program, folder, *others = words
        return self._answer([program, *others], Path(folder))


def _words(requests: int) -> list[str]:
    """The words of one request: their number, then each, all ended by a NUL."""
    content = b""
    while True:
        content += os.read(requests, 65536)
        number, *words = content.split(b"\0")
        if len(words) > int(number or b"0") > 0:
            return [word.decode() for word in words[:-1]]

"""What a program says of a command line before it does anything."""

import argparse
import contextlib
import importlib.util
import io
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.docs.markdown import ROOT

Run = Callable[[], Any]


class _Accepted(BaseException):
    """The outermost parser has read all words."""


class _Found(BaseException):
    """The outermost parser, before it reads."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def accepts(run: Run) -> int:
    """0 once a parser has read all words of `run`, which ends there; else its own status."""
    parse_args = argparse.ArgumentParser.parse_args
    parse_known_args = argparse.ArgumentParser.parse_known_args
    depth = 0

    def parse(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal depth
        depth += 1
        try:
            found = original(*args, **kwargs)
        finally:
            depth -= 1
        unread = found[1] if isinstance(found, tuple) else []
        if depth == 0 and not unread:
            raise _Accepted
        return found

    with (
        _parsers(
            lambda *args, **kwargs: parse(parse_args, *args, **kwargs),
            lambda *args, **kwargs: parse(parse_known_args, *args, **kwargs),
        ),
        contextlib.suppress(_Accepted),
    ):
        status = run() or 0
        assert status, "it went on without reading its arguments"
        return status
    return 0


def flags(run: Run, subcommand: str = "") -> set[str]:
    """The options, with underscores, that the first parser of `run` knows, and a subcommand's."""

    def found(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        raise _Found(parser)

    output = io.StringIO()
    with (
        _parsers(found, found),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        try:
            run()
        except _Found as it:
            return _flags(it.parser, subcommand)
    raise AssertionError(f"it reads no arguments: {output.getvalue()}")


def module(name: str, words: Sequence[str] = ()) -> Run:
    """`python -m NAME WORDS`, in this process."""

    def run() -> None:
        with patch.object(sys, "argv", [name, *words]):
            runpy.run_module(name, run_name="__main__", alter_sys=True)

    return run


def reads_arguments(name: str) -> bool:
    """Whether `python -m NAME` would have a parser, found without running it.

    Raises:
        AssertionError: if there is no such module in the repository, or it would do nothing.
    """
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    assert spec is not None, f"there is no module {name}"
    assert spec.origin is not None, f"there is no module {name}"
    path = Path(spec.origin)
    assert path.resolve().is_relative_to(ROOT), f"{name} is none of lrk's"
    source = path.read_text(encoding="utf-8")
    assert path.name == "__main__.py" or '__name__ == "__main__"' in source, f"{name} does nothing"
    return "ArgumentParser" in source or "parse_args" in source


def _flags(parser: argparse.ArgumentParser, subcommand: str) -> set[str]:
    found = {flag.replace("-", "_") for flag in parser._option_string_actions}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and subcommand in action.choices:
            found |= _flags(action.choices[subcommand], "")
    return found


@contextlib.contextmanager
def _parsers(
    parse_args: Callable[..., Any], parse_known_args: Callable[..., Any]
) -> Iterator[None]:
    kind = argparse.ArgumentParser
    with (
        patch.object(kind, "parse_args", parse_args),
        patch.object(kind, "parse_known_args", parse_known_args),
    ):
        yield

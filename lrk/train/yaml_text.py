"""YAML as `lrk-train` and `lrk-eval` read it: mappings, lists, and every scalar as it is written.

A key that stands there twice is refused, for the last would win. So is what is deeper or longer
than a configuration can be, aliases written out: with them a few lines stand for gigabytes.
"""

from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 2**20
MOST_VALUES = 100_000
DEEPEST = 16


class _Loader(yaml.BaseLoader):
    """PyYAML's loader of text alone, with bounds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        # Of a node, how many values it holds, and how deep it is; None while that is open.
        self._extents: dict[yaml.Node, tuple[int, int] | None] = {}

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and self._extent(node)[0] > MOST_VALUES:
            raise _refused(f"more than {MOST_VALUES:,} values, with aliases written out", node)
        return node

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self._depth > DEEPEST:
            raise _refused(f"more than {DEEPEST} levels", self.peek_event())
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _extent(self, node: yaml.Node) -> tuple[int, int]:
        if node not in self._extents:
            self._extents[node] = None
            parts = [] if isinstance(node, yaml.ScalarNode) else node.value
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in node.value for part in pair]
            extents = [self._extent(part) for part in parts]
            depth = 1 + max((depth for _, depth in extents), default=0)
            self._extents[node] = 1 + sum(size for size, _ in extents), depth
        extent = self._extents[node]
        if extent is None:
            raise _refused("an alias of what it stands in", node)
        if extent[1] > DEEPEST:
            raise _refused(f"more than {DEEPEST} levels, with aliases written out", node)
        return extent

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            # As an argument has it, whose hyphens are underscores.
            name = str(key.value).replace("-", "_")
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key that is no text"
            elif name in seen:
                problem = f"key {key.value!r} stands there twice"
            else:
                seen.add(name)
                continue
            raise _refused(problem, key)
        return super().construct_mapping(node, deep=True)


def _refused(problem: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def read_text(text: str) -> Any:
    """What a text says: text, lists and mappings of text.

    Raises:
        ValueError: in one sentence, with the line, for what is no YAML or more of it than is read.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a file holds.

    Raises:
        ValueError: in one sentence that names the file.
    """
    what = f"configuration file {str(path)!r}"
    if not path.is_file():
        raise ValueError(f"{what} does not exist")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{what} has {size:,} bytes; it must have at most {MOST_BYTES:,}")
    try:
        content = read_text(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a mapping of keys to values")
    return content

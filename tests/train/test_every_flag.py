"""Every argument works by its own name, from a file and from the command line."""

import enum
from dataclasses import Field, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml

from lrk.train import LrkTrainingArguments
from lrk.train.parser import given

HINTS = get_type_hints(LrkTrainingArguments)
FIELDS = [item for item in fields(LrkTrainingArguments) if item.init]

# Objects of Python that no text stands for; transformers' own parser takes text there and fails.
NOT_TEXT = {"parallelism_config"}

OTHERS = {
    "include_num_input_tokens_seen": "all",
    "debug": ["underflow_overflow", "tpu_metrics_debug"],
}


def kinds(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type hint."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def another_value(item: Field) -> Any:
    """A value of the argument that is not its default."""
    parts = kinds(HINTS[item.name])
    for part in parts:
        if isinstance(part, type) and issubclass(part, enum.Enum):
            return next(choice.value for choice in part if choice.value != item.default)
    if get_origin(parts[0]) is Literal:
        return next(choice for choice in get_args(parts[0]) if choice != item.default)
    if item.name in OTHERS:
        return OTHERS[item.name]
    if item.metadata.get("choices"):
        return next(c for c in item.metadata["choices"] if c not in (None, item.default))
    if item.name == "kernels":
        return {"rope": False, "cross_entropy": False}
    if any(get_origin(part) is dict or part is dict for part in parts):
        return {"a": 1, "b": 1e-06, "c": "x"}
    for part in parts:
        if get_origin(part) is list:
            return {int: [5, 6], float: [0.25, 0.75]}.get(get_args(part)[0], ["x", "y"])
    if bool in parts and str not in parts:
        return item.default is not True
    if int in parts:
        return 7
    if float in parts:
        return 1e-05
    return "some text"


def words_of(name: str, value: Any) -> list[str]:
    if name == "kernels":
        return [word for key, choice in value.items() for word in (f"--kernels.{key}", str(choice))]
    if isinstance(value, dict):
        return [f"--{name}", yaml.safe_dump(value, default_flow_style=True).strip()]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]


@pytest.mark.parametrize("hyphens", [False, True], ids=["underscores", "hyphens"])
@pytest.mark.parametrize("item", FIELDS, ids=lambda item: item.name)
def test_another_value_than_the_default(item, hyphens, tmp_path):
    if item.name in NOT_TEXT:
        pytest.skip("a Python object")
    value = another_value(item)
    name = item.name.replace("_", "-") if hyphens else item.name
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({name: value}))
    from_file = given([str(path)])
    assert from_file == {item.name: value}
    assert type(from_file[item.name]) is type(value)
    if not isinstance(value, dict) or item.name == "kernels":
        assert given(words_of(name, value)) == {item.name: value}
        assert given([str(path), *words_of(name, value)]) == {item.name: value}


@pytest.mark.parametrize("item", FIELDS, ids=lambda item: item.name)
def test_the_default_is_the_one_that_is_documented(item, tmp_path):
    """An empty value is the default."""
    path = tmp_path / "config.yaml"
    path.write_text(f"{item.name}:\n")
    assert given([str(path)]) == {}

"""Arguments from Python, whose types nothing else checks."""

from pathlib import Path

import numpy as np
import pytest

from lrk.eval.arguments import EvalArguments

GIVEN = {"model": "m", "output_dir": "o", "tasks": ["passkey"], "lengths": [512], "device": "cpu"}


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("patch", "false", "bool or None"),
        ("chat_template", 1, "bool"),
        ("overwrite_output_dir", "no", "bool"),
        ("dry_run", None, "bool"),
        ("trials", "3", "int or None"),
        ("trials", 2.5, "int or None"),
        ("seed", True, "int"),
        ("lengths", "512", "list.int."),
        ("lengths", [512.5], "list.int."),
        ("depths", ["50"], "list.float."),
        ("tasks", "passkey", "list.str."),
        ("model", 3, "str or None"),
    ],
)
def test_a_value_of_another_type_is_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"^{name} is .*; it must be {allowed}$"):
        EvalArguments(**GIVEN | {name: value})


def test_what_python_takes_for_the_same_is_taken():
    made = EvalArguments(
        **GIVEN
        | {"model": Path("m"), "lengths": (np.int64(512),), "depths": [50], "tasks": ("passkey",)}
    )
    assert (made.model, made.lengths, made.depths) == ("m", [512], [50.0])
    assert made.to_dict() == EvalArguments(**GIVEN | {"depths": [50.0]}).to_dict()

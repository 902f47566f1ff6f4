from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from lrk.kernels.argument_types import check_dense, check_dense_if_given, flag, integer, real


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), torch.tensor(3), np.array(3)])
def test_integers(value):
    assert type(integer("n", value)) is int
    assert integer("n", value) == 3


@pytest.mark.parametrize(
    "value",
    [3.0, np.float32(3), "3", True, np.True_, None, [3], 2**63, torch.tensor(3.0),
     torch.tensor([3]), torch.tensor(3, device="meta")],
)  # fmt: skip
def test_what_is_no_integer(value):
    with pytest.raises(TypeError, match=r"^n is .*: must be an integer$"):
        integer("n", value)


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float16(2), np.int64(2), Fraction(2), Decimal(2), torch.tensor(2.0)]
)
def test_real_numbers(value):
    assert type(real("x", value)) is float
    assert real("x", value) == 2.0


@pytest.mark.parametrize(
    "value",
    ["2", b"2", None, True, 2j, np.complex64(2), 10**400, [2.0], np.ones(2), torch.ones(2),
     torch.tensor(2.0, device="meta"), torch.tensor(2j)],
)  # fmt: skip
def test_what_is_no_real_number(value):
    with pytest.raises(TypeError, match=r"^x is .*: must be a real number$") as error:
        real("x", value)
    assert len(str(error.value)) < 130
    assert "\n" not in str(error.value)


def test_flags():
    assert flag("f", np.True_) is True
    assert flag("f", False) is False
    for value in ("false", 1, None, torch.tensor(True)):
        with pytest.raises(TypeError, match=r"^f is .*: must be True or False$"):
            flag("f", value)


def test_tensors():
    check_dense(one=torch.ones(2))
    check_dense_if_given(one=torch.ones(2), two=None)
    for value in (None, np.ones(2), 1.0, torch.ones(2).to_sparse(), torch.nested.nested_tensor([])):
        with pytest.raises(TypeError, match=r"^two "):
            check_dense(one=torch.ones(2), two=value)

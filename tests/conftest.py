"""Where kernels run in the tests, and what the Triton interpreter needs to be trusted there.

Triton kernels run on the GPU if there is one, else on CPU tensors in Triton's interpreter. Whether
it interprets is fixed when a kernel is decorated, so it is chosen here, before any import of lrk.
"""

import os
import unittest.mock
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def _bfloat16_bits_to_float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _float32_to_bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Round to nearest even, as every GPU does."""
    return torch.from_numpy(np.ascontiguousarray(values)).bfloat16().view(torch.uint16).numpy()


@pytest.fixture(scope="session", autouse=True)
def bfloat16_in_the_interpreter() -> Iterator[None]:
    """Mend two faults of Triton's interpreter, which stores bfloat16 as uint16.

    `tl.dot` multiplies the bit patterns, and the cast from float32 truncates. Arithmetic on
    bfloat16 values is wrong too, but kernels load into float32 before they calculate.
    """
    builder = interpreter.InterpreterBuilder
    stock_dot, stock_cast = builder.create_dot, builder.cast_impl

    def upcast(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle(_bfloat16_bits_to_float32(handle.data), tl.float32)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        return stock_dot(self, upcast(a), upcast(b), d, input_precision, max_num_imprecise_acc)

    def cast_impl(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(_float32_to_bfloat16_bits(src.data), tl.bfloat16)
        return stock_cast(self, src, dst_type)

    # The builder's casts are lambdas that look `cast_impl` up on the instance.
    with unittest.mock.patch.multiple(builder, create_dot=create_dot, cast_impl=cast_impl):
        yield


@pytest.fixture
def device() -> torch.device:
    """Where kernels are launched."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill `torch.empty` with NaN (integers: the largest value), so that unwritten outputs show."""
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    was_filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(was_deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = was_filling


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)

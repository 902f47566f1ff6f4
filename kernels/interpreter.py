"""Triton's interpreter, mended where it is silently wrong.

Without a GPU, kernels run on CPU tensors in the interpreter, if `TRITON_INTERPRET=1` is set before
they are decorated. Triton 3.6 to 3.9 stores bfloat16 there as uint16: `tl.dot` multiplies the bit
patterns, and the cast from float32 truncates where every GPU rounds to nearest even. Arithmetic on
bfloat16 values is wrong too, but kernels load into float32 before they calculate.

Triton 3.6 makes Python integers of arrays with one element, which numpy refuses from 2.4 on: there
every loop with a computed bound would stop.
"""

import functools
from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter


@functools.cache
def mend_interpreter() -> None:
    """From now on, interpreted kernels of this process treat bfloat16 as a GPU does."""
    builder = interpreter.InterpreterBuilder
    stock_dot, stock_cast = builder.create_dot, builder.cast_impl
    stock_patch = interpreter._patch_lang_tensor

    def upcast(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle(_bfloat16_bits_to_float32(handle.data), tl.float32)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        return stock_dot(self, upcast(a), upcast(b), d, input_precision, max_num_imprecise_acc)

    def cast_impl(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(_float32_to_bfloat16_bits(src.data), tl.bfloat16)
        return stock_cast(self, src, dst_type)

    def patch_lang_tensor(tensor, scope):
        stock_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    # The builder's casts are lambdas that look `cast_impl` up on the instance.
    builder.create_dot, builder.cast_impl = create_dot, cast_impl
    interpreter._patch_lang_tensor = patch_lang_tensor


def _bfloat16_bits_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _float32_to_bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return torch.from_numpy(np.ascontiguousarray(values)).bfloat16().view(torch.uint16).numpy()

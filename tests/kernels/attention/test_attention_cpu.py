"""Attention of CPU tensors."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lrk.kernels.attention import attention, attention_reference, cpu
from lrk.kernels.attention.mask import Mask


@pytest.mark.parametrize("seed", range(200))
def test_random_case(seed, case_of, check, poisoned):
    check(attention, case_of(seed))


@pytest.mark.parametrize("seed", range(200, 220))
def test_float64(seed, case_of, evaluate, poisoned):
    case = case_of(seed)
    case = case._replace(**{name: getattr(case, name).double() for name in ("q", "k", "v")})
    ours, truth = (evaluate(f, case) for f in (attention, attention_reference))
    for name, value in ours.items():
        torch.testing.assert_close(value, truth[name], rtol=1e-10, atol=1e-10, msg=name)


class _Recorder(TorchDispatchMode):
    """Names of the ATen calls, and the size of the largest tensor they made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append(func.overloadpacket.__name__)
        for x in result if isinstance(result, tuple) else (result,):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return result


def _inputs(length, heads=4, kv_heads=2, head_dim=64, batch=1):
    torch.manual_seed(0)
    shapes = [(batch, length, h, head_dim) for h in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape).transpose(1, 2) for shape in shapes]


def _record(q, k, v, mask, softcap=None, with_lse=False):
    # A custom operation hides its inside from a dispatch mode, so its two halves are called here.
    with _Recorder() as recorder:
        out, lse = cpu.forward(q, k, v, mask, 0.125, softcap)
        grad_lse = torch.ones_like(lse) if with_lse else None
        cpu.backward(out, grad_lse, q, k, v, out, lse, mask, 0.125, softcap)
    return recorder


CAUSAL = Mask(None, None, None, None, None, causal=True, q_offset=0, window=None)


def test_one_causal_document_is_one_call_of_pytorch():
    recorder = _record(*_inputs(300), CAUSAL)
    assert [name for name in recorder.calls if "flash_attention" in name] == [
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ]
    copies = {"clone", "copy_", "_to_copy", "zeros", "new_zeros", "add"} & set(recorder.calls)
    assert not copies - {"clone"}  # the lse is cloned into its order of dimensions


_ENDS = torch.tensor([0, 1000, 3000, 8192])


@pytest.mark.parametrize(
    ("mask", "softcap", "with_lse"),
    [
        (CAUSAL, None, True),
        (CAUSAL._replace(window=100), None, False),
        (CAUSAL, 20.0, False),
        (CAUSAL._replace(cu_seqlens=_ENDS, cu_seqlens_k=_ENDS), None, False),
        (CAUSAL._replace(q_offset=1), None, False),
    ],
    ids=["lse", "window", "softcap", "documents", "offset"],
)
def test_memory_grows_with_the_length_and_not_with_its_square(mask, softcap, with_lse):
    inputs = _inputs(8192, heads=1, kv_heads=1, head_dim=16)
    recorder = _record(*inputs, mask, softcap, with_lse)
    assert recorder.largest <= 2**22 < 8192**2 / 8


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([0, 5, 3, 20], "falls from 5 to 3"),
        ([0, 5, 19], "runs from 0 to 19"),
        ([1, 20], "runs from 1 to 20"),
        ([0, 15, 20], "document from 0 to 15 that crosses the end of a row of 10 tokens"),
    ],
)
def test_wrong_documents_are_refused(ends, message):
    inputs = _inputs(10, batch=2)
    with pytest.raises(ValueError, match=message):
        attention(*inputs, cu_seqlens=torch.tensor(ends))


def test_documents_in_different_rows_are_refused():
    inputs = _inputs(10, batch=2)
    with pytest.raises(ValueError, match="must be the same row"):
        attention(
            *inputs,
            cu_seqlens=torch.tensor([0, 10, 20, 20]),
            cu_seqlens_k=torch.tensor([0, 5, 10, 20]),
        )


@pytest.mark.parametrize("which", [0, 1, 2])
def test_rows_that_share_memory(which, poisoned):
    """A sliding view: PyTorch's own kernel leaves most of its output unwritten where q is one."""
    inputs = [torch.randn(2, 4, 5, 16) for _ in range(3)]
    inputs[which] = torch.randn(2, 4, 20).unfold(-1, 16, 1)
    truth = attention_reference(*(x.double() for x in inputs))
    assert (attention(*inputs) - truth).abs().max() < 1e-5

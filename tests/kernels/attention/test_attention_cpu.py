"""Attention of CPU tensors."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lrk.kernels.attention import attention


@pytest.mark.parametrize("seed", range(200))
def test_random_case(seed, case_of, check, sdpa, poisoned):
    # In float32 PyTorch's own kernel is up to 5 times further off than eager arithmetic, because
    # its backward recomputes the scores in another order; ours is that kernel.
    check(attention, case_of(seed), plain=sdpa)


@pytest.mark.parametrize("seed", range(200, 220))
def test_float64(seed, case_of, evaluate, poisoned):
    from lrk.kernels.attention import attention_reference

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
    return [torch.randn(shape).transpose(1, 2).requires_grad_() for shape in shapes]


def test_one_causal_document_is_one_call_of_pytorch():
    inputs = _inputs(300)
    with _Recorder() as recorder:
        attention(*inputs).sum().backward()
    flash = [name for name in recorder.calls if "flash_attention" in name]
    assert flash == [
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"window": 100},
        {"softcap": 20.0},
        {"cu_seqlens": torch.tensor([0, 1000, 3000, 8192])},
        {"q_offset": 1},
        {"return_lse": True},
    ],
    ids=str,
)
def test_memory_grows_with_the_length_and_not_with_its_square(arguments):
    length = 8192
    inputs = _inputs(length, heads=1, kv_heads=1, head_dim=16)
    with _Recorder() as recorder:
        result = attention(*inputs, **arguments)
        sum(x.sum() for x in result if x.requires_grad).backward()
    assert recorder.largest <= 2**22 < length * length / 8


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([0, 5, 3, 20], "must rise from 0 to batch \\* length = 20"),
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
            cu_seqlens=torch.tensor([0, 10, 10, 20]),
            cu_seqlens_k=torch.tensor([0, 10, 15, 20]),
        )

"""Attention as an operation of PyTorch: schema, fakes, compilation, autocast, validation."""

import numpy as np
import pytest
import torch
from torch.library import opcheck
from torch.testing import assert_close

from lrk.kernels.attention import attention, attention_reference, attention_triton, op

BOTH = pytest.mark.parametrize("function", [attention, attention_triton])
ENDS = torch.tensor([0, 5, 5, 20, 40], dtype=torch.int32)
VARIANTS = {
    "plain": {},
    "full": {"causal": False, "softcap": 3.0},
    "documents": {"cu_seqlens": ENDS},
    "static cache": {"kv_lengths": torch.tensor([3, 20]), "window": 4},
    "positions": {"window": 9, "window_position_ids": 2 * torch.arange(20)[None]},
    "offset tensor": {"q_offset": torch.tensor(2), "scale": 0.2},
}


def _inputs(device, head_dim=32, dtype=torch.float32):
    torch.manual_seed(0)
    tensors = [torch.randn(2, 20, heads, head_dim) for heads in (4, 2, 2)]
    return [x.to(device, dtype).transpose(1, 2).requires_grad_() for x in tensors]


def _moved(arguments, device):
    return {k: v.to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}


# The two functions share schema, fakes and autograd: in the interpreter one variant is enough.
CALLS = pytest.mark.parametrize(
    ("function", "variant"),
    [*((attention, variant) for variant in VARIANTS), (attention_triton, "documents")],
)


@CALLS
def test_opcheck(function, variant, device):
    inputs = _inputs(device)
    calls = []

    def record(*args):
        calls.append(args)
        return inner(*args)

    name = f"_{function.__name__}"
    inner = getattr(op, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op, name, record)
        function(*inputs, **_moved(VARIANTS[variant], device))
    opcheck(inner, calls[0])


@CALLS
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(function, variant, dynamic, device):
    arguments = _moved(VARIANTS[variant], device)

    def loss(*inputs):
        out, lse = function(*inputs, **arguments, return_lse=True)
        return (out * out).sum() + torch.where(torch.isfinite(lse), lse, 0).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    inputs = _inputs(device)
    expected, got = loss(*inputs), compiled(*inputs)
    assert_close(got, expected)
    assert_close(torch.autograd.grad(got, inputs), torch.autograd.grad(expected, inputs))


def test_dynamic_shapes_do_not_recompile(device):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend=counter)
    for length in (20, 21, 35):
        q, k, v = torch.randn(3, 2, 4, length, 32, device=device)
        assert_close(compiled(q, k, v), attention(q, k, v))
    assert counter.frame_count == 1


@BOTH
def test_autocast(function, device):
    inputs = _inputs(device)
    with torch.autocast(device.type, torch.bfloat16):
        out = function(*inputs)
    assert out.dtype == torch.bfloat16
    assert_close(out, function(*(x.bfloat16() for x in inputs)))
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


@BOTH
def test_lse_of_a_call_without_gradients(function, device):
    out, lse = function(*(x.detach() for x in _inputs(device)), return_lse=True)
    assert not out.requires_grad
    assert lse.dtype == torch.float32
    assert lse.shape == (2, 4, 20)


@BOTH
def test_scores_beyond_the_range_of_exp(function, device):
    """Scores of up to 500 overflow `exp` and round to 3e-5; only differences may enter it."""
    inputs = _inputs(device)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    results = []
    for f, tensors in ((function, inputs), (attention_reference, exact)):
        out, lse = f(*tensors, scale=20.0, return_lse=True)
        gradients = torch.autograd.grad(out.square().sum() + lse.sum(), tensors)
        results.append((out, lse, *gradients))
    assert 300 < results[1][1].abs().max() < 1000
    for ours, truth in zip(*results, strict=True):
        assert (ours - truth).abs().max() < 1e-3 * truth.abs().max()


def test_only_what_needs_a_gradient_gets_one(device):
    q, k, v = _inputs(device)
    attention(q, k.detach(), v.detach()).sum().backward()
    assert q.grad is not None
    assert k.grad is None


@BOTH
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(4, 20, 32)}, r"q has shape \(4, 20, 32\): must be \(batch, heads"),
        ({"k": torch.zeros(2, 3, 20, 32)}, r"v has shape"),
        (
            {"k": torch.zeros(2, 3, 20, 32), "v": torch.zeros(2, 3, 20, 32)},
            "k has 3 heads: must divide q's 4 heads",
        ),
        (
            {"k": torch.zeros(2, 2, 20, 16), "v": torch.zeros(2, 2, 20, 16)},
            "batch and head dim must be those of q",
        ),
        ({"k": torch.zeros(2, 2, 20, 32).half()}, "k has dtype torch.float16: must be that of q"),
        ({"q": torch.zeros(2, 4, 20, 32).int()}, "q has dtype torch.int32"),
        ({"scale": 0.0}, "scale is 0.0: must be from 1e-15 to 1e"),
        ({"softcap": -1.0}, "softcap is -1.0: must be from 1e-15"),
        ({"window": 0}, "window is 0, causal True: must be at least 1, and causal"),
        ({"window": 3, "causal": False}, "window is 3, causal False"),
        ({"window_position_ids": torch.zeros(1, 20).long()}, "given without window"),
        (
            {"window": 3, "window_position_ids": torch.zeros(20).long()},
            r"window_position_ids has shape \(20,\) .* must be \(1, 20\) or \(2, 20\) int32",
        ),
        (
            {"window": 3, "window_position_ids": torch.zeros(1, 20).long(), "q_offset": 1},
            "q_offset is 1: with window_position_ids every query needs a key index below 20",
        ),
        ({"kv_lengths": torch.zeros(3).long()}, r"kv_lengths has shape \(3,\)"),
        ({"kv_lengths": torch.zeros(2)}, "dtype torch.float32: must be"),
        ({"q_offset": torch.zeros(3).long()}, r"q_offset has shape \(3,\)"),
        ({"cu_seqlens": ENDS, "q_offset": 0}, "q_offset do not combine with cu_seqlens"),
        ({"cu_seqlens": ENDS, "kv_lengths": ENDS[:2]}, "do not combine with cu_seqlens"),
        ({"cu_seqlens_k": ENDS}, "cu_seqlens_k is given without cu_seqlens"),
        ({"cu_seqlens": ENDS.float()}, "cu_seqlens has shape .* dtype torch.float32"),
        ({"cu_seqlens": ENDS, "cu_seqlens_k": ENDS[:3]}, "cu_seqlens_k has 2 documents"),
        ({"q": torch.zeros(2, 4, 7, 32), "cu_seqlens": ENDS}, "cu_seqlens_k is missing"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(function, change, message, device):
    arguments = dict(zip("qkv", _inputs(device), strict=True)) | _moved(change, device)
    with pytest.raises(ValueError, match=message) as error:
        function(**arguments)
    assert "\n" not in str(error.value)


@BOTH
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_offset": 2.0}, r"q_offset is 2\.0, of type float: must be an integer"),
        ({"q_offset": "2"}, "q_offset is '2', of type str: must be an integer"),
        ({"q_offset": True}, "q_offset is True, of type bool: must be an integer"),
        (
            {"q_offset": 2**70},
            "q_offset is 1180591620717411303424, of type int: must be an integer",
        ),
        ({"window": 2.5}, r"window is 2\.5, of type float: must be an integer"),
        ({"scale": "0.5"}, r"scale is '0\.5', of type str: must be a real number"),
        ({"softcap": 10**400}, r"softcap is 1000.*\.\.\., of type int: must be a real number"),
        ({"causal": "false"}, "causal is 'false', of type str: must be True or False"),
        ({"return_lse": 1}, "return_lse is 1, of type int: must be True or False"),
        ({"q": [1.0]}, r"q is \[1\.0\], of type list: must be a tensor"),
        ({"v": None}, "v is None"),
        ({"cu_seqlens": [0, 20, 40]}, r"cu_seqlens is \[0, 20, 40\], of type list"),
        ({"k": torch.zeros(2, 2, 20, 32).to_sparse()}, "k is sparse"),
    ],
)
def test_wrong_types_are_refused_in_one_sentence(function, change, message, device):
    arguments = dict(zip("qkv", _inputs(device), strict=True)) | change
    with pytest.raises(TypeError, match=message) as error:
        function(**arguments)
    assert "\n" not in str(error.value)


@BOTH
def test_numbers_of_numpy_are_numbers(function, device):
    inputs = _inputs(device)
    ours = function(*inputs, q_offset=np.int64(2), window=np.int32(5), scale=np.float32(0.25))
    truth = function(*inputs, q_offset=2, window=5, scale=0.25)
    assert torch.equal(ours, truth)
    assert not torch.equal(ours, function(*inputs, window=5, scale=0.25))


@BOTH
@pytest.mark.parametrize("window", [None, 7, 2**40 + 9])
@pytest.mark.parametrize("q_offset", [-(2**62), -21, -20, 19, 27, 28, 2**31 - 1, 2**40])
def test_an_offset_beyond_all_keys(function, window, q_offset, device):
    """Below them no key is seen, above them all are, and behind the window none."""
    inputs = _inputs(device)
    ours = function(*inputs, q_offset=q_offset, window=window)
    exact = (x.detach().double() for x in inputs)
    truth = attention_reference(*exact, q_offset=q_offset, window=window)
    assert (ours - truth).abs().max() < 1e-5
    gradients = torch.autograd.grad(ours.sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kv_lengths": torch.tensor([20, -1])},
            "kv_lengths has -1: must be from 0 to the 20 keys",
        ),
        ({"q_offset": torch.tensor(2**40)}, "q_offset has 1099511627776: must be from -2.30 to"),
        ({"kv_lengths": torch.tensor([21, 3])}, "kv_lengths has 21: must be from 0 to the 20 keys"),
        (
            {"window": 3, "window_position_ids": 30 - torch.arange(20)[None]},
            "window_position_ids fall after key 0 of row 0: must never fall in a document",
        ),
        (
            {"window": 3, "window_position_ids": torch.tensor([[*range(19), 2**31]])},
            r"window_position_ids run from 0 to 2147483648: must be from 0 to 2\^31 - 1",
        ),
    ],
)
def test_wrong_values_are_refused_on_a_cpu(change, message):
    with pytest.raises(ValueError, match=message):
        attention(*_inputs("cpu"), **change)


def test_positions_may_fall_between_documents_and_stand_still():
    positions = torch.cat([torch.arange(12) // 2, torch.arange(8)]).expand(2, -1)
    ends = torch.tensor([0, 12, 20, 32, 40])
    inputs = _inputs("cpu")
    arguments = {"cu_seqlens": ends, "window": 3, "window_position_ids": positions}
    ours = attention(*inputs, **arguments)
    truth = attention_reference(*(x.detach().double() for x in inputs), **arguments)
    assert (ours - truth).abs().max() < 1e-5
    assert (attention_triton(*inputs, **arguments) - truth).abs().max() < 1e-5


@BOTH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cu_seqlens": ENDS}, "cu_seqlens is on device meta: must be that of q"),
        ({"kv_lengths": torch.zeros(2).long()}, "kv_lengths is on device meta"),
        ({"q_offset": torch.tensor(2)}, "q_offset is on device meta"),
        (
            {"window": 3, "window_position_ids": torch.arange(20)[None]},
            "window_position_ids is on device meta",
        ),
    ],
)
def test_what_lies_on_another_device_is_refused(function, arguments, message, device):
    with pytest.raises(ValueError, match=message):
        function(*_inputs(device), **_moved(arguments, "meta"))

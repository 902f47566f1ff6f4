"""The operation as torch sees it: schema, fakes, autograd, compilation, validation."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from lrk.kernels.rope import phase_increments, rope, rope_reference, rope_triton
from lrk.kernels.rope.kernel import choose_tiles

OPERATIONS = ["rope", "rope_triton"]


def arguments(device, dtype=torch.float32, length=6, rotary_dim=16):
    """q, k as transformers lays them out, positions, increments."""
    q, k = (
        torch.randn(2, length, heads, 16, device=device, dtype=dtype).transpose(1, 2)
        for heads in (4, 2)
    )
    position_ids = torch.randint(0, 1000, (2, length), device=device)
    inv_freq = 1e4 ** (-torch.arange(0, rotary_dim, 2, device=device).double() / rotary_dim)
    return q, k, position_ids, phase_increments(inv_freq)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("interleaved", "inverse"), [(False, False), (False, True), (True, False)])
def test_opcheck(name, interleaved, inverse, device):
    q, k, position_ids, increments = arguments(device, length=5)
    operation = getattr(torch.ops.lrk, name).default
    inputs = q.requires_grad_(), k.requires_grad_(not inverse), position_ids, increments
    torch.library.opcheck(operation, (*inputs, 1.3, interleaved, inverse))


def test_opcheck_of_phase_increments(device):
    inv_freq = torch.rand(5, dtype=torch.float64, device=device)
    torch.library.opcheck(torch.ops.lrk.phase_increments.default, (inv_freq,))


@pytest.mark.parametrize("function", [rope, rope_reference])
@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients_in_float64(function, interleaved):
    q, k, position_ids, increments = arguments("cpu", torch.float64, length=2, rotary_dim=12)
    q, k = q[:, :2], k[:, :1]

    def both(q, k):
        return function(q, k, position_ids, increments, 1.3, interleaved)

    inputs = q.requires_grad_(), k.requires_grad_()
    assert gradcheck(both, inputs)
    assert gradgradcheck(both, inputs)


@pytest.mark.parametrize("function", [rope, rope_triton])
def test_compiles_without_graph_break(function, device):
    """Once for all lengths, forward and backward."""
    torch._dynamo.reset()
    frames = CompileCounterWithBackend("aot_eager")

    def step(q, k, position_ids, inv_freq):
        q, k = function(2 * q, k, position_ids, inv_freq)
        return q.sum() + (k * k).sum()

    compiled = torch.compile(step, backend=frames, fullgraph=True, dynamic=True)
    counts = []
    for length in (5, 9, 12):
        q, k, position_ids, _ = arguments(device, length=length)
        inv_freq = 1e4 ** (-torch.arange(0, 16, 2, device=device).double() / 16)
        q, k = q.requires_grad_(), k.requires_grad_()
        inputs = q, k, position_ids, inv_freq
        eager, ours = step(*inputs), compiled(*inputs)
        torch.testing.assert_close(ours, eager)
        for grad, true in zip(
            torch.autograd.grad(ours, (q, k)), torch.autograd.grad(eager, (q, k)), strict=True
        ):
            torch.testing.assert_close(grad, true)
        counts.append(frames.frame_count)
    assert counts[0] == counts[-1]


def test_fakes_keep_strides(device):
    real = arguments(device)
    expected = rope(*real)
    with FakeTensorMode() as mode:
        outputs = rope(*(mode.from_tensor(x) for x in real))
    for fake, out in zip(outputs, expected, strict=True):
        assert (fake.shape, fake.stride(), fake.dtype) == (out.shape, out.stride(), out.dtype)


def test_backward_keeps_only_positions_and_frequencies(device):
    q, k, position_ids, increments = arguments(device)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        rope(q.requires_grad_(), k.requires_grad_(), position_ids, increments)
    assert {x.data_ptr() for x in kept} == {position_ids.data_ptr(), increments.data_ptr()}


@pytest.mark.parametrize("function", [rope, rope_triton, rope_reference])
def test_positions_of_a_sampler_are_those_of_all_rows(device, function):
    q, k, _, increments = arguments(device)
    positions = torch.tensor([0, 1, 2, 40, 41, 900], device=device)
    expected = function(q, k, positions.expand(2, -1), increments)
    for given in (positions, positions[None], positions.int()):
        for ours, rows in zip(function(q, k, given, increments), expected, strict=True):
            assert torch.equal(ours, rows)


def bad(**changes):
    """Good arguments with some of them changed, by functions of the good ones."""
    good = dict(zip(("q", "k", "position_ids", "inv_freq"), arguments("cpu"), strict=True))
    return good | {name: change(good.get(name)) for name, change in changes.items()}


@pytest.mark.parametrize("function", [rope, rope_triton])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": lambda q: q.int()}, TypeError, r"q must be .* got torch.int32"),
        ({"k": lambda k: k.half()}, TypeError, r"k must have the dtype of q, torch.float32, got"),
        ({"q": lambda q: q[0]}, ValueError, r"q must have shape \(B, H, S, D\), got \(4, 6, 16\)"),
        ({"k": lambda k: k[:, :, 1:]}, ValueError, r"\(2, Hk, 6, 16\) as q has, got \(2, 2, 5, 16"),
        ({"k": lambda k: k[:1]}, ValueError, r"k must have shape"),
        ({"k": lambda k: k.to("meta")}, ValueError, r"k must be on the device of q, cpu, got meta"),
        ({"position_ids": lambda p: p.float()}, TypeError, r"int32 or int64, got torch.float32"),
        (
            {"position_ids": lambda p: p[0, :3]},
            ValueError,
            r"or \(6,\) for the same in all rows, got",
        ),
        (
            {"position_ids": lambda p: p[:, :3]},
            ValueError,
            r"\(2, 6\), or \(1, 6\) or .*got \(2, 3\)",
        ),
        ({"position_ids": lambda p: p.to("meta")}, ValueError, r"device of q, cpu, got meta"),
        ({"inv_freq": lambda f: f.half()}, TypeError, r"inv_freq must be .* got torch.float16"),
        ({"inv_freq": lambda f: f[:0]}, ValueError, r"2 <= R <= D = 16, got \(0,\)"),
        ({"inv_freq": lambda f: f.repeat(2)}, ValueError, r"2 <= R <= D = 16, got \(16,\)"),
        ({"inv_freq": lambda f: f[None]}, ValueError, r"shape \(R/2,\) with"),
        ({"inv_freq": lambda f: f.double().requires_grad_()}, ValueError, r"requires a gradient"),
        ({"inv_freq": lambda f: f.double() / 0}, ValueError, r"inv_freq must be finite"),
        ({"inv_freq": lambda f: f.to("meta")}, ValueError, r"device of q, cpu, got meta"),
        (
            {"interleaved": lambda _: 1},
            TypeError,
            r"interleaved is 1, of type int: must be True or",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(function, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        function(**bad(**changes))
    assert "\n" not in str(caught.value)


def test_negative_positions_are_refused_on_the_cpu():
    with pytest.raises(ValueError, match=r"position_ids must be from 0 to 2\^38, got -3"):
        rope(**bad(position_ids=lambda p: torch.full_like(p, -3)))


def test_positions_where_angles_are_less_exact_are_refused_on_the_cpu():
    with pytest.raises(
        ValueError, match=r"position_ids must be from 0 to 2\^38, got 1099511627776"
    ):
        rope(**bad(position_ids=lambda p: torch.full_like(p, 2**40)))
    rope(**bad(position_ids=lambda p: torch.full_like(p, 2**38)))


def test_the_kernel_refuses_float64(device):
    with pytest.raises(TypeError, match="got float64"):
        rope_triton(*arguments(device, torch.float64))


@pytest.mark.parametrize("shape", [(1, 131_072, 32, 8, 128, 128), (1, 1, 28, 4, 128, 128),
                                   (4, 100, 9, 3, 64, 64), (1, 5, 7, 0, 256, 16)])  # fmt: skip
def test_shares_divide_the_heads(shape):
    _, length, heads, kv_heads, *_ = shape
    tiles = choose_tiles(*shape)
    assert heads % tiles.shares == 0
    assert kv_heads % tiles.shares == 0
    if length == 131_072:
        assert tiles.shares == 1
    # A tile must stay within the registers of 128 threads.
    assert tiles.block_tokens * max(tiles.block_half, tiles.block_rest // 2) <= 2048

"""Values and gradients of both implementations against the float64 reference."""

import random

import pytest
import torch
from torch import Tensor

from lrk.kernels.rope import phase_increments, rope, rope_reference, rope_triton
from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_as_exact_as

IMPLEMENTATIONS = [rope, rope_triton]


def frequencies(rotary_dim: int, device: torch.device, theta: float = 5e5) -> Tensor:
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=device) / rotary_dim
    return theta**-exponents


def transformers_layout(batch: int, heads: int, length: int, head_dim: int) -> Tensor:
    return torch.randn(batch, length, heads, head_dim).transpose(1, 2)


def plain(q, k, position_ids, inv_freq, attention_scaling=1.0, interleaved=False):
    """What a model does in its own dtype, given exact tables: rounded cosines, rounded products."""
    rotary_dim = 2 * inv_freq.numel()
    angle = position_ids[..., None].double() * inv_freq.double()
    angle = angle.repeat_interleave(2, dim=-1) if interleaved else angle.repeat(1, 1, 2)
    cos = (angle.cos() * attention_scaling).to(q.dtype)[:, None]
    sin = (angle.sin() * attention_scaling).to(q.dtype)[:, None]

    def rotate(x):
        x, rest = x[..., :rotary_dim], x[..., rotary_dim:]
        if interleaved:
            partners = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        else:
            first, second = x.chunk(2, dim=-1)
            partners = torch.cat([-second, first], dim=-1)
        return torch.cat([x * cos + partners * sin, rest], dim=-1)

    return rotate(q), rotate(k)


def results(function, q, k, *arguments, grads):
    """Outputs, and gradients of q and k for the given gradients of the outputs."""
    q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
    outputs = function(q, k, *arguments)
    return *outputs, *torch.autograd.grad(outputs, (q, k), grads)


def check(
    implementation,
    q,
    k,
    position_ids,
    inv_freq,
    attention_scaling=1.0,
    interleaved=False,
    output_factor=OUTPUT_FACTOR,
):
    grads = [torch.randn_like(q), torch.randn_like(k)]
    arguments = position_ids, inv_freq, attention_scaling, interleaved
    ours = results(implementation, q, k, *arguments, grads=grads)
    in_dtype = results(plain, q, k, *arguments, grads=grads)
    truth = results(
        rope_reference, q.double(), k.double(), *arguments, grads=[g.double() for g in grads]
    )
    for name, value, same, true in zip(("q", "k", "dq", "dk"), ours, in_dtype, truth, strict=True):
        factor = GRADIENT_FACTOR if name.startswith("d") else output_factor
        assert_as_exact_as(value, same, true, factor, name)


def drawn(batch, heads, kv_heads, length, head_dim, device, dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and their positions."""
    torch.manual_seed(length)
    q = transformers_layout(batch, heads, length, head_dim).to(device, dtype)
    k = transformers_layout(batch, kv_heads, length, head_dim).to(device, dtype)
    return q, k, torch.randint(0, 131_072, (batch, length), device=device)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "length", "head_dim", "rotary_dim"),
    [
        pytest.param(1, 9, 3, 67, 64, 64, id="SmolLM2"),
        pytest.param(2, 4, 1, 40, 128, 128, id="D 128, batch of 2"),
        pytest.param(1, 28, 4, 3, 128, 128, id="Qwen2-7B's heads"),
        pytest.param(2, 3, 3, 33, 80, 80, id="D 80, half not a power of 2"),
        pytest.param(1, 2, 2, 19, 96, 96, id="D 96"),
        pytest.param(1, 2, 1, 17, 256, 256, id="D 256"),
        pytest.param(2, 3, 2, 9, 80, 32, id="partial rotary"),
        pytest.param(1, 2, 1, 5, 64, 2, id="one pair"),
        pytest.param(3, 5, 2, 1, 48, 24, id="S 1"),
        pytest.param(2, 5, 2, 0, 64, 64, id="S 0"),
        pytest.param(0, 5, 2, 7, 64, 64, id="B 0"),
        pytest.param(2, 4, 0, 7, 64, 64, id="no keys"),
        pytest.param(1, 2, 1, 300, 16, 16, id="several blocks of tokens"),
    ],
)
def test_values_and_gradients(
    implementation, dtype, batch, heads, kv_heads, length, head_dim, rotary_dim, device, poisoned
):
    q, k, position_ids = drawn(batch, heads, kv_heads, length, head_dim, device, dtype)
    check(implementation, q, k, position_ids, frequencies(rotary_dim, device))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "length", "head_dim", "rotary_dim"),
    [
        pytest.param(1, 9, 1, 21, 128, 64, id="GLM-4's half of the head"),
        pytest.param(2, 3, 3, 33, 80, 80, id="D 80, half not a power of 2"),
        pytest.param(2, 3, 2, 9, 81, 34, id="odd D"),
        pytest.param(1, 2, 1, 5, 64, 2, id="one pair"),
        pytest.param(2, 4, 0, 7, 64, 64, id="no keys"),
        pytest.param(2, 5, 2, 0, 64, 64, id="S 0"),
        pytest.param(1, 2, 1, 300, 16, 16, id="several blocks of tokens"),
    ],
)
def test_interleaved_pairs(
    implementation, dtype, batch, heads, kv_heads, length, head_dim, rotary_dim, device, poisoned
):
    q, k, position_ids = drawn(batch, heads, kv_heads, length, head_dim, device, dtype)
    # In float32 as in `test_random_case`.
    factor = GRADIENT_FACTOR if dtype == torch.float32 else OUTPUT_FACTOR
    check(implementation, q, k, position_ids, frequencies(rotary_dim, device), 1.2, True, factor)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, rope_reference])
def test_interleaving_is_an_order_of_dimensions(implementation, device):
    """By halves of the dimensions 0, 2, 4, ..., 1, 3, 5, ... in this order: the same rotation."""
    torch.manual_seed(0)
    q, k = (transformers_layout(2, heads, 9, 40).to(device) for heads in (4, 2))
    position_ids = torch.randint(0, 131_072, (2, 9), device=device)
    order = torch.tensor([*range(0, 24, 2), *range(1, 24, 2), *range(24, 40)], device=device)
    arguments = position_ids, frequencies(24, device), 1.3
    neighbours = implementation(q, k, *arguments, interleaved=True)
    halves = implementation(q[..., order], k[..., order], *arguments)
    for one, other in zip(neighbours, halves, strict=True):
        torch.testing.assert_close(one[..., order], other, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_random_case(seed, device, poisoned):
    """Shapes, strides, dtypes, bases, positions and pairings drawn from a seed.

    In float32 the kernel's cosines, within 1.0e-7, show beside tables that were rounded once.
    """
    draw = random.Random(seed)
    torch.manual_seed(seed)
    batch, length, kv_heads = draw.randint(1, 3), draw.randint(1, 70), draw.randint(1, 3)
    head_dim = 2 * draw.randint(4, 80)
    rotary_dim = draw.choice([head_dim, 2 * draw.randint(1, head_dim // 2)])
    dtype = draw.choice([torch.float32, torch.bfloat16, torch.float16])
    q, k = (
        (
            transformers_layout(batch, heads, length, head_dim)
            if draw.random() < 0.5
            else torch.randn(batch, heads, head_dim + 3, length + 1).mT[:, :, 1:, 2:-1]
        ).to(device, dtype)
        for heads in (kv_heads * draw.randint(1, 4), kv_heads)
    )
    positions = torch.randint(0, draw.choice([100, 2**17, 2**31 - 1]), (batch, length))
    inv_freq = frequencies(rotary_dim, device, draw.choice([1e4, 5e5, 1e8]))
    factor = GRADIENT_FACTOR if dtype == torch.float32 else OUTPUT_FACTOR
    scaling = draw.choice([1.0, 1.2])
    interleaved = draw.random() < 0.5
    check(rope_triton, q, k, positions.to(device), inv_freq, scaling, interleaved, factor)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("inverse_dtype", [torch.float64, torch.float32, torch.int64])
@pytest.mark.parametrize("rows", [1, 3])
def test_kinds_of_arguments(implementation, index_dtype, inverse_dtype, rows, device, poisoned):
    torch.manual_seed(rows)
    q, k = (transformers_layout(3, heads, 21, 32).to(device) for heads in (4, 2))
    # A view with a stride: positions are often a slice of a longer tensor.
    position_ids = torch.randint(0, 10**6, (rows, 42), dtype=index_dtype, device=device)[:, ::2]
    inv_freq = frequencies(32, device)
    if inverse_dtype == torch.int64:
        ours = phase_increments(inv_freq)
    else:
        ours = inv_freq = inv_freq.to(inverse_dtype)
    grads = [torch.randn_like(q), torch.randn_like(k)]
    value = results(implementation, q, k, position_ids, ours, 1.3, grads=grads)
    truth = results(rope_reference, q, k, position_ids, inv_freq, 1.3, grads=grads)
    for ours_, true in zip(value, truth, strict=True):
        torch.testing.assert_close(ours_, true, rtol=0, atol=3e-6)


def strided(kind: str, heads: int, device: torch.device) -> Tensor:
    """(2, heads, 11, 32) in several layouts."""
    batch, length, dim = 2, 11, 32
    if kind == "contiguous":
        return torch.randn(batch, heads, length, dim, device=device)
    if kind == "slice of a fused projection":
        fused = torch.randn(batch, length, heads + 3, dim, device=device)
        return fused[:, :, 2 : 2 + heads].transpose(1, 2)
    if kind == "head dim outermost":
        return torch.randn(dim, batch, heads, length, device=device).permute(1, 2, 3, 0)
    if kind == "every second element":
        return torch.randn(batch, heads, length, 2 * dim, device=device)[..., ::2]
    if kind == "odd strides and start":
        return torch.randn(batch, heads, length, dim + 3, device=device)[..., 1 : dim + 1]
    assert kind == "expanded over batch and heads"
    return torch.randn(1, 1, length, dim, device=device).expand(batch, heads, -1, -1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        "contiguous",
        "slice of a fused projection",
        "head dim outermost",
        "every second element",
        "odd strides and start",
        "expanded over batch and heads",
    ],
)
def test_any_strides(implementation, kind, interleaved, device, poisoned):
    torch.manual_seed(0)
    q, k = strided(kind, 5, device), strided(kind, 2, device)
    position_ids = torch.randint(0, 10**5, (2, 11), device=device)
    check(implementation, q, k, position_ids, frequencies(32, device), 0.7, interleaved)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_layout_of_transformers_is_kept(implementation, device):
    """Its (B, S, H, D) memory is neither copied on the way in nor on the way out."""
    q, k = (transformers_layout(2, heads, 8, 32).to(device) for heads in (4, 2))
    position_ids = torch.arange(8, device=device)[None]
    outputs = implementation(q, k, position_ids, frequencies(32, device))
    for out, x in zip(outputs, (q, k), strict=True):
        assert out.stride() == x.stride()
        assert out.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_inputs_are_left_alone(implementation, device):
    q, k = (transformers_layout(1, heads, 8, 32).to(device) for heads in (4, 2))
    before = q.clone(), k.clone()
    implementation(q, k, torch.arange(8, device=device)[None], frequencies(32, device))
    assert torch.equal(q, before[0])
    assert torch.equal(k, before[1])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("wanted", ["q", "k"])
def test_one_gradient_alone(implementation, wanted, device, poisoned):
    """The loss may depend on one output, and one input may need no gradient."""
    torch.manual_seed(0)
    q, k = (transformers_layout(1, heads, 9, 32).to(device) for heads in (4, 2))
    arguments = torch.arange(9, device=device)[None], frequencies(32, device)
    wanted, other = (q, k) if wanted == "q" else (k, q)
    wanted.requires_grad_()
    grad = torch.randn_like(wanted)

    def gradient(function):
        output = function(q, k, *arguments)[0 if wanted is q else 1]
        return torch.autograd.grad(
            output, (wanted, other) if other.requires_grad else wanted, grad, allow_unused=True
        )

    torch.testing.assert_close(
        gradient(implementation), gradient(rope_reference), rtol=0, atol=2e-6
    )
    other.requires_grad_()
    assert gradient(implementation)[1] is None


def test_scores_depend_on_distance_only(device):
    """What RoPE is for: q.k is a function of the difference of positions."""
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 64, device=device), torch.randn(1, 1, 1, 64, device=device)
    inv_freq = phase_increments(frequencies(64, device))
    scores = []
    for start in (0, 1, 131_071, 2**31 - 8):
        at = [torch.tensor([[start + offset]], device=device) for offset in (7, 0)]
        rotated_q, _ = rope_triton(q, q, at[0], inv_freq)
        rotated_k, _ = rope_triton(k, k, at[1], inv_freq)
        scores.append((rotated_q.double() * rotated_k.double()).sum())
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(4), rtol=0, atol=5e-6)

"""The loss as a torch operation: opcheck, torch.compile, autocast, and who gets a gradient."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from lrk.kernels.cross_entropy import (
    chunks,
    cpu,
    kernel,
    linear_cross_entropy,
    linear_cross_entropy_reference,
    linear_cross_entropy_triton,
)
from lrk.kernels.cross_entropy.chunks import (
    GRADIENT_TOKENS,
    ChunkSizes,
    Kept,
    chunk_size,
    chunk_sizes,
    run,
)
from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_as_exact_as

NAMES = ["lrk::linear_cross_entropy", "lrk::linear_cross_entropy_triton"]


def leaf(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach().clone().requires_grad_()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_opcheck(name, with_bias, make_case):
    case = make_case(shape=(2, 3), vocab=19, width=8, with_bias=with_bias, with_token_weight=True)
    hidden, weight, bias = leaf(case.hidden), leaf(case.weight), leaf(case.bias)
    library, operation = name.split("::")
    if with_bias:  # neither is contiguous
        hidden = leaf(case.hidden.transpose(0, 1).contiguous().transpose(0, 1))
        weight = leaf(case.weight.t().contiguous().t())
    needs = [True, True, with_bias]
    total = getattr(getattr(torch.ops, library), f"{operation}_total").default
    torch.library.opcheck(
        total,
        (hidden, weight, case.labels, bias, leaf(case.token_weight), -100, 0.1, 0.01, 3.0, 4,
         torch.float32, needs),
    )  # fmt: skip
    statistics = getattr(getattr(torch.ops, library), f"{operation}_statistics").default
    arguments = (-100, None, None, torch.float32, 0, 19)
    torch.library.opcheck(
        statistics, (hidden, weight, case.labels, bias, *arguments, with_bias, not with_bias)
    )
    backward = getattr(getattr(torch.ops, library), f"{operation}_statistics_backward").default
    ones = torch.ones(case.labels.shape, device=hidden.device)
    torch.library.opcheck(
        backward,
        (ones, ones, None, ones if with_bias else None, case.hidden, case.weight, case.labels,
         case.bias, *arguments, needs),
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"return_lse": True}], ids=str)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_break(options, dynamic, make_case):
    torch._dynamo.reset()
    compiled = torch.compile(
        linear_cross_entropy, fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for shape in [(2, 9), (2, 11)]:
        case = make_case(
            shape, vocab=33, with_bias=True, with_token_weight=True, label_smoothing=0.1, **options
        )
        plain = case.evaluate(linear_cross_entropy, torch.float32)
        for name, value in case.evaluate(compiled, torch.float32).items():
            torch.testing.assert_close(value, plain[name], msg=name)


def test_compiles_inside_a_model_under_autocast(make_case):
    case = make_case(vocab=33)
    head, inner = leaf(case.weight), torch.nn.Linear(37, 37)

    def loss(hidden):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return linear_cross_entropy(inner(hidden), head, case.labels)

    eager = torch.autograd.grad(loss(case.hidden), head)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(case.hidden), head)[0], eager)


def test_autocast_is_as_exact_as_linear(function, make_case, device):
    """Operands in float32, in mixed precision, and backward inside the region or outside."""
    case = make_case(with_bias=True)
    truth = case.evaluate(linear_cross_entropy_reference, torch.float64)

    def under_autocast(function):
        def run(**keywords):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                return function(**keywords)

        return run

    plain = case.evaluate(under_autocast(linear_cross_entropy_reference), torch.float32)
    ours = case.evaluate(under_autocast(function), torch.float32)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        inside = case.evaluate(function, torch.float32)
    for name, value in ours.items():
        factor = GRADIENT_FACTOR if name.startswith("gradient") else OUTPUT_FACTOR
        assert_as_exact_as(value, plain[name], truth[name], factor, name)
        assert torch.equal(value, inside[name])
    if function is not linear_cross_entropy or device.type == "cuda":
        # The operands were rounded to bfloat16, as they would have been in F.linear.
        assert (ours["gradient of hidden"] - truth["gradient of hidden"]).abs().max() > 1e-6
    with torch.autocast(device.type, dtype=torch.bfloat16):
        mixed = function(case.hidden.bfloat16(), case.weight, case.labels)
    torch.testing.assert_close(
        mixed, function(case.hidden, case.weight, case.labels), rtol=1e-2, atol=0
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_frozen_inputs_cost_no_gradient(reduction, frozen, function, make_case):
    """What needs no gradient gets none; the other gradients do not change."""
    case = make_case(with_bias=True)
    tensors = {"hidden": case.hidden, "weight": case.weight, "bias": case.bias}

    def gradients(names):
        leaves = {k: v.clone().requires_grad_(k in names) for k, v in tensors.items()}
        function(labels=case.labels, reduction=reduction, **leaves).sum().backward()
        return {k: v.grad for k, v in leaves.items()}

    everything = gradients(list(tensors))
    some = gradients([name for name in tensors if name != frozen])
    assert some.pop(frozen) is None
    for name, gradient in some.items():
        assert torch.equal(gradient, everything[name])


def test_frozen_weight_allocates_no_gradient(make_case):
    """LoRA: nothing of the weight's shape is allocated."""
    case = make_case(shape=(40,), vocab=6000, width=64)
    hidden = leaf(case.hidden)
    with torch.profiler.profile(profile_memory=True) as profile:
        linear_cross_entropy(hidden, case.weight, case.labels).backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 1.1 * 40 * 6000 * 4 < case.weight.numel() * 4 * 0.7


def test_no_logits_are_kept_for_backward(make_case):
    case = make_case(shape=(200,), vocab=1000)
    hidden, weight = leaf(case.hidden), leaf(case.weight)
    for reduction in ("mean", "none"):
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor,
            lambda tensor: tensor,
        )
        with hooks:
            linear_cross_entropy(hidden, weight, case.labels, reduction=reduction)
        assert 0 < max(sizes) <= weight.numel() < 200 * 1000


def test_backward_on_a_cpu_allocates_nothing(make_case):
    case = make_case(shape=(20,), vocab=3000, width=100)
    hidden, weight = leaf(case.hidden), leaf(case.weight)
    loss = linear_cross_entropy(hidden, weight, case.labels)
    with torch.profiler.profile(profile_memory=True) as profile:
        loss.backward()
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    # On a CPU, where a factor of 1 shows, those of forward are handed out as they are.
    assert allocated < 0.1 * 4 * (hidden.numel() + weight.numel())


def test_chunks_of_a_gpu_share_a_product_where_the_weight_is_trained():
    def sizes(tokens, vocab, dtype=torch.bfloat16, kind="cuda", adds=True, matrices=1):
        return chunk_sizes(tokens, vocab, dtype, torch.device(kind), adds, matrices)

    assert sizes(39_322, 128_256) == (1024, 4096)
    assert sizes(39_322, 128_256, matrices=2) == (512, 4096)
    assert sizes(39_322, 128_256, adds=False) == (1024, 1024)
    assert sizes(39_322, 128_256, torch.float32) == (1024, 1024)
    assert sizes(39_322, 128_256, kind="cpu") == sizes(39_322, 128_256, kind="cpu", adds=False)
    # In place where that is leaner: few tokens, or a vocabulary of which many rows fit.
    assert sizes(1500, 128_256) == (1500, 1500)
    assert sizes(39_322, 49_152) == (4096, 4096)
    for tokens, vocab, matrices in itertools.product(
        (1, 1000, 3000, 39_322), (100, 49_152, 128_256, 262_144), (1, 2)
    ):
        logits, gradient = sizes(tokens, vocab, matrices=matrices)
        room = 4 * matrices * logits + (2 * gradient if gradient > logits else 0)
        assert logits <= gradient
        assert gradient >= min(tokens, GRADIENT_TOKENS)
        assert room <= 4 * matrices * gradient


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_several_chunks_share_a_product(
    dtype, reduction, softcap, make_case, monkeypatch, poisoned
):
    """As on a GPU, whose 16-bit gradients wait beside the logits of a chunk."""
    case = make_case(shape=(41,), dtype=dtype, reduction=reduction, softcap=softcap, with_bias=True)
    whole = case.check(linear_cross_entropy_triton)
    monkeypatch.setattr(chunks, "chunk_sizes", lambda *_: ChunkSizes(5, 12))
    parts = case.check(linear_cross_entropy_triton)
    torch.testing.assert_close(parts["loss"], whole["loss"])
    torch.testing.assert_close(parts["gradient of hidden"], whole["gradient of hidden"])


def test_chunks_fit_the_workspace():
    for tokens in (1, 1000, 100_000):
        for vocab in (100, 32_000, 49_152, 128_256, 152_064, 262_144):
            for device, budget in (("cpu", 128 << 20), ("cuda", 512 << 20)):
                rows = chunk_size(tokens, vocab, 4, torch.device(device))
                assert rows == 64 or rows * vocab * 4 <= budget
                assert rows <= max(tokens / 4, 1024)


def test_label_outside_the_vocabulary_that_nobody_checked(function, make_case):
    """On a GPU that is not waited for: no memory is touched outside, and the loss is NaN."""
    case = make_case(shape=(4,))
    labels = torch.tensor([3, 101, -7, 2**40], device=case.hidden.device)
    invalid = torch.tensor([False, True, True, True], device=labels.device)
    row_pass = cpu.row_pass if function is linear_cross_entropy else kernel.row_pass
    if case.hidden.is_cuda:
        row_pass = kernel.row_pass
    kept = Kept(None, labels, invalid)
    statistics, _ = run(
        row_pass, case.hidden, case.weight, None, kept, None, None, torch.float32, want_sum=True
    )
    assert torch.equal(statistics.nll.isnan(), invalid)
    assert statistics.lse.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_gpu_is_not_waited_for_without_ignored_tokens(reduction, make_case):
    case = make_case(reduction=reduction, ignore_index=None, with_token_weight=True)
    case.evaluate(linear_cross_entropy, torch.bfloat16)  # compiles
    hidden, weight = leaf(case.hidden), leaf(case.weight)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = linear_cross_entropy(
            hidden, weight, case.labels, ignore_index=None, reduction=reduction
        )
        loss.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_tied_embedding(make_case):
    """The weight's gradient adds to the one it gets as an embedding."""
    case = make_case()
    tokens = case.labels.clamp(min=0)
    gradients = []
    for function in (linear_cross_entropy, linear_cross_entropy_reference):
        weight = leaf(case.weight)
        function(F.embedding(tokens, weight), weight, case.labels).backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(*gradients)


def test_backward_twice_and_a_factor_in_between(function, make_case):
    case = make_case(shape=(13,))
    hidden, weight = leaf(case.hidden), leaf(case.weight)
    loss = function(hidden, weight, case.labels)
    (first,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (second,) = torch.autograd.grad(loss * 3.0, weight, retain_graph=True)
    (third,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(second, 3.0 * first)
    assert torch.equal(first, third)


def test_gradients_of_a_retained_graph_are_nobody_elses(function, make_case):
    case = make_case(shape=(13,))
    hidden, weight = leaf(case.hidden), leaf(case.weight)
    loss = function(hidden, weight, case.labels)
    loss.backward(retain_graph=True)
    first = weight.grad.clone()
    weight.grad.zero_()
    loss.backward()
    assert torch.equal(weight.grad, first)


def test_writing_to_a_gradient_of_a_retained_graph_is_noticed(make_case):
    case = make_case(shape=(13,))
    hidden, weight = leaf(case.hidden), leaf(case.weight)
    loss = linear_cross_entropy(hidden, weight, case.labels)
    (first,) = torch.autograd.grad(loss, weight, retain_graph=True)
    expected = first.clone()
    first.zero_()
    if hidden.is_cuda:
        assert torch.equal(torch.autograd.grad(loss, weight)[0], expected)
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(loss, weight)


def test_second_derivative_is_refused(make_case):
    case = make_case(shape=(5,))
    hidden = leaf(case.hidden)
    loss = linear_cross_entropy(hidden, case.weight, case.labels)
    with pytest.raises(RuntimeError, match="create_graph=True: use linear_cross_entropy_reference"):
        torch.autograd.grad(loss, hidden, create_graph=True)
    per_token = linear_cross_entropy(hidden, case.weight, case.labels, reduction="none").sum()
    (gradient,) = torch.autograd.grad(per_token, hidden, create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_token_kept_gives_zero(reduction, function, make_case):
    case = make_case(shape=(2, 5), with_bias=True, with_token_weight=True, reduction=reduction)
    case.labels.fill_(-100)
    for name, value in case.evaluate(function, torch.float32).items():
        assert value.count_nonzero() == 0, name
        assert not value.isnan().any(), name


def test_no_token_at_all(function, make_case):
    case = make_case(shape=(0, 4), return_lse=True)
    results = case.evaluate(function, torch.float32)
    assert results["loss"] == 0
    assert results["lse"].shape == (0, 4)
    assert results["gradient of weight"].count_nonzero() == 0


def test_hidden_of_one_token(function, make_case):
    case = make_case()
    first = case.labels.flatten().ne(-100).int().argmax()
    hidden, label = case.hidden.flatten(0, 1)[first], case.labels.flatten()[first]
    expected = linear_cross_entropy_reference(hidden, case.weight, label)
    torch.testing.assert_close(function(hidden, case.weight, label), expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("ignore_index", [-100, None])
def test_strided_inputs_and_gradients(reduction, ignore_index, function, make_case):
    """Shifted by one, transposed, every second or repeated: nothing is contiguous."""
    case = make_case(shape=(3, 8), with_bias=True, ignore_index=ignore_index)
    inputs = {
        "hidden": case.hidden[:, :-1].transpose(0, 1),
        "weight": case.weight.t().contiguous().t(),
        "bias": case.bias.repeat_interleave(2)[::2],
        "token_weight": torch.linspace(0.5, 1, 3, device=case.hidden.device).expand(7, 3),
    }
    results = []
    for each in (function, linear_cross_entropy_reference):
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
        loss = each(
            labels=case.labels[:, 1:].t(),
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=0.1,
            **leaves,
        )
        loss.sum().backward()
        results.append([loss, *(tensor.grad for tensor in leaves.values())])
    torch.testing.assert_close(*results)


def test_ignored_rows_are_not_touched(function, make_case):
    """NaN in an ignored token's hidden state stays there."""
    case = make_case()
    clean = case.evaluate(function, torch.float32)
    case.hidden[case.labels == -100] = float("nan")
    for name, value in case.evaluate(function, torch.float32).items():
        assert torch.equal(value, clean[name]), name


def test_chunks_change_no_token(function, make_case):
    case = make_case(shape=(30,), reduction="none")
    results = []
    for chunk_tokens in (None, 1, 8, 1000):
        case.options["chunk_tokens"] = chunk_tokens
        results.append(case.evaluate(function, torch.float32))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-6, atol=1e-6)


def test_deterministic(function, make_case):
    case = make_case(with_bias=True)
    first, second = (case.evaluate(function, torch.float32) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_large_logits_do_not_overflow(sign, function, make_case):
    case = make_case(shape=(9,), reduction="none")
    case.hidden *= sign * 1e4
    truth = case.evaluate(linear_cross_entropy_reference, torch.float64)
    plain = case.evaluate(linear_cross_entropy_reference, torch.float32)
    for name, value in case.evaluate(function, torch.float32).items():
        assert_as_exact_as(value, plain[name], truth[name], GRADIENT_FACTOR, name)


def test_vocabulary_masked_by_an_infinite_bias(function, make_case):
    case = make_case(shape=(9,), with_bias=True)
    case.labels.clamp_(max=49)
    case.bias[50:] = float("-inf")
    truth = case.evaluate(linear_cross_entropy_reference, torch.float64)
    for name, value in case.evaluate(function, torch.float32).items():
        torch.testing.assert_close(value.double(), truth[name], rtol=1e-5, atol=1e-6)

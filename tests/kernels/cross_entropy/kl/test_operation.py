"""The divergence as a torch operation: opcheck, torch.compile, autocast, who gets a gradient."""

import pytest
import torch

from lrk.kernels.cross_entropy import linear_cross_entropy, linear_kl, linear_kl_reference
from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_as_exact_as

NAMES = ["lrk::linear_kl", "lrk::linear_kl_triton"]


def leaf(tensor):
    return None if tensor is None else tensor.detach().clone().requires_grad_()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_opcheck(name, with_bias, make_case):
    case = make_case(
        shape=(2, 3),
        vocab=19,
        width=8,
        with_bias=with_bias,
        with_teacher_bias=with_bias,
        with_token_weight=True,
    )
    given = case.tensors.get
    hidden, weight, bias = (leaf(given(name)) for name in ("hidden", "weight", "bias"))
    if with_bias:  # neither is contiguous
        hidden = leaf(hidden.transpose(0, 1).contiguous().transpose(0, 1))
        weight = leaf(weight.t().contiguous().t())
    teacher = [given(name) for name in ("teacher_hidden", "teacher_weight", "teacher_bias")]
    options = (-100, 2.0, 3.0 if with_bias else None, None, 4, torch.float32, torch.float32)
    needs = [True, True, with_bias]
    library, operation = name.split("::")

    def of(suffix):
        return getattr(getattr(torch.ops, library), f"{operation}_{suffix}").default

    student = (hidden, weight, case.labels, bias)
    torch.library.opcheck(
        of("total"), (*student, leaf(given("token_weight")), *teacher, *options, needs)
    )
    torch.library.opcheck(of("tokens"), (*student, *teacher, *options))
    ones = torch.ones(case.labels.shape, device=hidden.device)
    detached = [x if x is None else x.detach() for x in student]
    torch.library.opcheck(of("tokens_backward"), (ones, *detached, *teacher, *options, needs))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_break(reduction, dynamic, make_case):
    torch._dynamo.reset()
    compiled = torch.compile(linear_kl, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in [(2, 9), (2, 11)]:
        case = make_case(
            shape, vocab=33, with_bias=True, with_token_weight=True, reduction=reduction
        )
        plain = case.evaluate(linear_kl)
        for name, value in case.evaluate(compiled).items():
            torch.testing.assert_close(value, plain[name], msg=name)


def test_autocast_is_as_exact_as_linear(function, make_case, device):
    """Operands in float32, and backward inside the region or outside."""
    case = make_case(with_bias=True, with_teacher_bias=True)

    def under_autocast(function):
        def run(**keywords):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                return function(**keywords)

        return run

    truth = case.evaluate(linear_kl_reference, torch.float64)
    plain = case.evaluate(under_autocast(linear_kl_reference))
    ours = case.evaluate(under_autocast(function))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        inside = case.evaluate(function)
    for name, value in ours.items():
        factor = GRADIENT_FACTOR if name.startswith("gradient") else OUTPUT_FACTOR
        assert_as_exact_as(value, plain[name], truth[name], factor, name)
        assert torch.equal(value, inside[name])


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_frozen_inputs_cost_no_gradient(reduction, frozen, function, make_case):
    case = make_case(shape=(7,), with_bias=True, with_labels=False)
    teacher = {name: x for name, x in case.tensors.items() if name.startswith("teacher")}
    student = {name: x for name, x in case.tensors.items() if name not in teacher}

    def gradients(names):
        leaves = {k: v.clone().requires_grad_(k in names) for k, v in student.items()}
        function(reduction=reduction, **leaves, **teacher).sum().backward()
        return {k: v.grad for k, v in leaves.items()}

    everything = gradients(list(student))
    some = gradients([name for name in student if name != frozen])
    assert some.pop(frozen) is None
    for name, gradient in some.items():
        assert torch.equal(gradient, everything[name])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_teacher_gets_no_gradient(reduction, function, make_case):
    case = make_case(with_teacher_bias=True)
    tensors = {name: leaf(x) for name, x in case.tensors.items()}
    function(labels=case.labels, reduction=reduction, **tensors).sum().backward()
    for name, tensor in tensors.items():
        assert (tensor.grad is None) == name.startswith("teacher")
    alone = {name: leaf(x) if name[0] == "t" else x for name, x in case.tensors.items()}
    assert not function(labels=case.labels, reduction=reduction, **alone).requires_grad


def test_no_logits_are_kept_for_backward(make_case):
    case = make_case(shape=(200,), vocab=1000, width=16)
    tensors = {name: leaf(x) for name, x in case.tensors.items()}
    for reduction in ("mean", "none"):
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor,
            lambda tensor: tensor,
        )
        with hooks:
            linear_kl(**tensors, labels=case.labels, reduction=reduction)
        assert 0 < max(sizes) < 200 * 1000 / 4


def test_one_chunk_of_each_is_in_memory(make_case):
    case = make_case(shape=(400,), vocab=3000, width=16, with_labels=False)
    tensors = {name: leaf(x) for name, x in case.tensors.items()}
    with torch.profiler.profile(profile_memory=True) as profile:
        linear_kl(**tensors, chunk_tokens=50).backward()
    # Profiled is what a call leaves allocated: within the operation, each of two workspaces.
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 2.5 * 50 * 3008 * 4 < 400 * 3000 * 4


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_token_kept_gives_zero(reduction, function, make_case, poisoned):
    case = make_case(shape=(2, 5), with_bias=True, with_token_weight=True, reduction=reduction)
    case.labels.fill_(-100)
    for name, value in case.evaluate(function).items():
        assert value.count_nonzero() == 0, name
        assert not value.isnan().any(), name


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_token_at_all(reduction, function, make_case, poisoned):
    case = make_case(shape=(0, 4), with_labels=False, reduction=reduction)
    for value in case.evaluate(function).values():
        assert value.count_nonzero() == 0


def test_hidden_of_one_token(function, make_case):
    tensors = {
        name: x[0, 0] if name.endswith("hidden") else x for name, x in make_case().tensors.items()
    }
    torch.testing.assert_close(function(**tensors), linear_kl_reference(**tensors))


def test_ignored_rows_are_not_touched(function, make_case):
    """NaN in an ignored token's hidden states, or the teacher's, stays there."""
    case = make_case()
    clean = case.evaluate(function)
    for name in ("hidden", "teacher_hidden"):
        case.tensors[name][case.labels == -100] = float("nan")
    for name, value in case.evaluate(function).items():
        assert torch.equal(value, clean[name]), name


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("with_labels", [False, True])
def test_strided_inputs_and_gradients(reduction, with_labels, function, make_case):
    """Shifted by one, transposed, every second or repeated: nothing is contiguous."""
    case = make_case(shape=(3, 8), with_bias=True, with_teacher_bias=True)
    tensors = case.tensors
    case.tensors = {
        **{k: tensors[k][:, :-1].transpose(0, 1) for k in ("hidden", "teacher_hidden")},
        **{k: tensors[k].t().contiguous().t() for k in ("weight", "teacher_weight")},
        **{k: tensors[k].repeat_interleave(2)[::2] for k in ("bias", "teacher_bias")},
        "token_weight": torch.linspace(0.5, 1, 3, device=case.labels.device).expand(7, 3),
    }
    case.labels = case.labels[:, 1:].t() if with_labels else None
    case.options = {"reduction": reduction}
    case.check(function)


def test_chunks_change_no_token(function, make_case):
    case = make_case(shape=(12,), reduction="none")
    results = []
    for chunk_tokens in (None, 1, 5, 1000):
        case.options["chunk_tokens"] = chunk_tokens
        results.append(case.evaluate(function))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-6)


def test_deterministic(function, make_case):
    case = make_case(with_bias=True)
    first, second = (case.evaluate(function) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_second_derivative_is_refused(make_case):
    case = make_case(shape=(5,))
    hidden = leaf(case.tensors["hidden"])
    loss = linear_kl(**case.tensors | {"hidden": hidden})
    with pytest.raises(RuntimeError, match=r"linear_kl computes .* use linear_kl_reference"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_beside_the_cross_entropy(make_case):
    """The usual sum of both, with the same labels and the same divisor."""
    case = make_case()
    hidden, weight = leaf(case.tensors["hidden"]), leaf(case.tensors["weight"])
    teacher = [case.tensors[f"teacher_{name}"] for name in ("hidden", "weight")]
    shared = {"num_items": 30}
    loss = 0.3 * linear_cross_entropy(hidden, weight, case.labels, **shared)
    loss = loss + 0.7 * linear_kl(hidden, weight, *teacher, case.labels, **shared)
    loss.backward()
    assert hidden.grad[case.labels == -100].count_nonzero() == 0
    assert hidden.grad.count_nonzero() > 0


HIDDEN, WEIGHT = torch.zeros(2, 5, 8), torch.zeros(11, 8)
TEACHER_HIDDEN, TEACHER_WEIGHT = torch.zeros(2, 5, 6), torch.zeros(11, 6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": WEIGHT.double()}, TypeError, "weight is torch.float64, hidden torch.float32"),
        (
            {"teacher_weight": TEACHER_WEIGHT[:10]},
            ValueError,
            r"teacher_weight must have shape \(11, 6\), the student's vocabulary.*got \(10, 6\)",
        ),
        ({"teacher_weight": WEIGHT}, ValueError, r"teacher_weight must .*got \(11, 8\)"),
        ({"teacher_hidden": HIDDEN[0]}, ValueError, r"leading shape \(2, 5\), got \(5, 8\)"),
        ({"teacher_hidden": TEACHER_HIDDEN.long()}, TypeError, "teacher_hidden must be floating"),
        ({"teacher_hidden": TEACHER_HIDDEN.to("meta")}, ValueError, "teacher_hidden is on meta"),
        ({"teacher_weight": TEACHER_WEIGHT.half()}, TypeError, "teacher_weight is torch.float16"),
        ({"teacher_hidden": TEACHER_HIDDEN.double()}, TypeError, "teacher_hidden is torch.float64"),
        ({"teacher_hidden": TEACHER_HIDDEN[..., :0]}, ValueError, "teacher_hidden has no features"),
        ({"teacher_bias": torch.zeros(6)}, ValueError, r"teacher_bias must have shape \(11,\)"),
        ({"temperature": 1e5}, ValueError, "temperature must be from 1e-15 to 10000, got 100000"),
        ({"temperature": "2"}, TypeError, "temperature is '2', of type str: must be a real number"),
        ({"temperature": 0.0}, ValueError, "temperature must be from 1e-15 to 10000, got 0.0"),
        ({"teacher_softcap": -1}, ValueError, "teacher_softcap must be from 1e-15 to .* or None"),
        ({"softcap": 0.0}, ValueError, "^softcap must be from 1e-15 to .* or None, got 0.0"),
        ({"reduction": "batchmean"}, ValueError, "reduction must be one of"),
        ({"num_items": 3, "reduction": "sum"}, ValueError, "num_items divides"),
        ({"chunk_tokens": 0}, ValueError, "chunk_tokens must be at least 1 or None, got 0"),
        ({"labels": torch.zeros(2, 5)}, TypeError, "labels must be torch.int64"),
        ({"labels": torch.full((2, 5), 11)}, ValueError, "label"),
    ],
)
@pytest.mark.parametrize("reference", [False, True])
def test_bad_arguments(changes, error, message, reference, function):
    function = linear_kl_reference if reference else function
    given = {"hidden": HIDDEN, "weight": WEIGHT}
    given |= {"teacher_hidden": TEACHER_HIDDEN, "teacher_weight": TEACHER_WEIGHT}
    with pytest.raises(error, match=message):
        function(**given | changes)

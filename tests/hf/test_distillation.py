"""The divergence from a teacher beside the loss of a patched model, against float64 logits."""

import copy

import peft
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

import lrk
from lrk.hf.canary import tiny_config, tiny_model
from lrk.hf.distillation import Distillation, TeacherHead
from lrk.hf.head import Head, Rows
from lrk.hf.logit_scale import LogitScale
from studies.ranks import run_ranks

VOCABULARY, LENGTH = 61, 13
KINDS = {
    "llama": {},
    "tied embeddings": {"model_type": "llama", "tie_word_embeddings": True},
    "gemma2": {"final_logit_softcapping": 3.0},
    "granite": {},
    "mixtral": {},
}


def model_of(kind, seed=0, **options):
    options = {"model_type": kind, "head_dim": 8, "initializer_range": 0.2} | KINDS[kind] | options
    torch.manual_seed(seed)
    return tiny_model(tiny_config(options.pop("model_type"), **options)).train()


@pytest.fixture
def batch():
    """Tokens, labels, weights of tokens, positions of another view, and a mask."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, VOCABULARY, (2, LENGTH), generator=generator)
    labels = tokens.clone()
    labels[0, 3:6] = labels[1, 12] = -100
    weight = torch.rand(2, LENGTH, generator=generator) * 3
    mask = torch.rand(2, LENGTH, generator=generator) < 0.4
    return tokens, labels, weight, mask


def hidden_of(model, tokens, **options):
    with torch.no_grad():
        return model(tokens, output_last_hidden=True, use_cache=False, **options).last_hidden_state


def divergences(student_logits, teacher_logits):
    """(B, S) float64, KL(teacher || student) of each token, the teacher without gradient."""
    log_q, log_p = (x.log_softmax(-1) for x in (student_logits, teacher_logits.detach()))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def assert_same_gradients(model, exact):
    for (name, ours), (_, direct) in zip(
        model.named_parameters(), exact.named_parameters(), strict=True
    ):
        if direct.grad is None:
            assert ours.grad is None, name
            continue
        scale = direct.grad.abs().max().item()
        torch.testing.assert_close(
            ours.grad.double(), direct.grad, rtol=0, atol=1e-4 * scale, msg=name
        )


@pytest.mark.parametrize("own", [True, False], ids=["own head", "another model"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients(kind, own, in_float64, batch):
    """The own head is read on another text, another model on the same one."""
    tokens, labels, _, mask = batch
    student = model_of(kind)
    teacher = student if own else model_of(kind, seed=1, hidden_size=24)
    seen = tokens.flip(0) if own else tokens
    exact = in_float64(student)
    exact_teacher = exact if own else in_float64(teacher)
    student_logits = exact(tokens).logits
    teacher_logits = exact_teacher(seen).logits
    losses = functional.cross_entropy(
        student_logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    items = (labels[:, 1:] != -100).sum()
    divergence = divergences(student_logits, teacher_logits)[mask].sum() / items
    truth = losses / items + 0.7 * divergence
    truth.backward()

    lrk.patch(student)
    head = None if own else TeacherHead.of(lrk.patch(teacher))
    hidden = hidden_of(teacher, seen)
    found = student(
        tokens, labels=labels, distillation=Distillation(hidden, 0.7, mask=mask, head=head)
    )
    found.loss.backward()
    torch.testing.assert_close(found.loss.double(), truth, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.divergence.double(), divergence.detach(), rtol=1e-5, atol=0)
    assert not found.divergence.requires_grad
    assert_same_gradients(student, exact)
    if not own:
        assert all(each.grad is None for each in teacher.parameters())


@pytest.mark.parametrize("num_items", [None, 40])
@pytest.mark.parametrize("weights", ["none", "tensor", "function"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
def test_weights_and_divisors(batch, weights, num_items, masked, shifted):
    """Weights of tokens are of the cross-entropy alone; both are divided by as many items."""
    tokens, labels, weight, mask = batch
    model = lrk.patch(model_of("llama"))
    teacher = hidden_of(model, tokens.flip(0))
    with torch.no_grad():
        hidden = hidden_of(model, tokens)
        logits = [model.lm_head(each).double() for each in (hidden, teacher)]
    kept = functional.pad(labels, (0, 1), value=-100)[:, 1:] != -100
    compared = mask if masked else kept
    expected = divergences(*logits)[compared].sum() / (num_items or kept.sum())

    options = {"num_items_in_batch": num_items}
    if shifted:
        options["shift_labels"] = functional.pad(labels, (0, 1), value=-100)[:, 1:]
    if weights != "none":
        options["token_weight"] = weight if weights == "tensor" else lambda losses: weight * losses
    plain = model(tokens, labels=labels, **options)
    distilled = Distillation(teacher, 1.3, mask=mask if masked else None)
    found = model(tokens, labels=labels, distillation=distilled, **options)
    assert plain.divergence is None
    torch.testing.assert_close(found.divergence.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.loss, plain.loss + 1.3 * found.divergence)


@pytest.mark.parametrize("masked", [True, False])
def test_the_last_tokens_alone(batch, masked):
    tokens, labels, _, mask = batch
    model = lrk.patch(model_of("llama"))
    teacher = hidden_of(model, tokens.flip(0))
    kept = functional.pad(labels, (0, 1), value=-100)[:, 1:] != -100
    compared = mask if masked else kept
    compared[:, :-5] = False
    whole = Distillation(teacher, 1.3, compared)
    last = Distillation(teacher[:, -5:], 1.3, compared[:, -5:] if masked else None)
    found = []
    for distillation in (whole, last):
        model.zero_grad()
        loss = model(tokens, labels=labels, distillation=distillation).loss
        loss.backward()
        found.append([loss.detach(), *(each.grad for each in model.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_weight_of_0_changes_no_bit(batch):
    tokens, labels, _, mask = batch
    model = lrk.patch(model_of("llama"))
    hidden = hidden_of(model, tokens.flip(0))
    gradients = []
    for distillation in (None, Distillation(hidden, 0.0, mask)):
        model.zero_grad()
        found = model(tokens, labels=labels, distillation=distillation)
        found.loss.backward()
        assert found.divergence is None
        gradients.append([found.loss, *(each.grad for each in model.parameters())])
    for plain, ours in zip(*gradients, strict=True):
        assert torch.equal(plain, ours)


def test_a_student_that_is_its_teacher_has_no_divergence(batch):
    tokens, labels, *_ = batch
    model = lrk.patch(model_of("gemma2"))
    found = model(tokens, labels=labels, distillation=Distillation(hidden_of(model, tokens), 1.0))
    assert 0 <= found.divergence < 1e-6


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_adapters_on_the_head(batch, dropout):
    """The teacher's adapters have no dropout, and neither weights nor adapters a gradient of it."""
    tokens, labels, _, mask = batch
    config = peft.LoraConfig(
        r=3, target_modules=["lm_head"], lora_dropout=dropout, init_lora_weights=False
    )
    model = lrk.patch(peft.get_peft_model(model_of("llama"), config)).train()
    model.eval()
    teacher = hidden_of(model, tokens.flip(0))
    with torch.no_grad():
        p = model.get_base_model().lm_head(teacher).double().softmax(-1)
    model.train()
    hidden = hidden_of(model, tokens)
    torch.manual_seed(3)
    log_q = model.get_base_model().lm_head(hidden).double().log_softmax(-1)
    items = (labels[:, 1:] != -100).sum()
    expected = (p * (p.log() - log_q)).sum(-1)[mask].sum() / items
    expected.backward()
    wanted = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    assert len(wanted) == 2

    model.zero_grad()
    torch.manual_seed(3)
    plain = model(tokens, labels=labels).loss
    torch.manual_seed(3)
    loss = model(tokens, labels=labels, distillation=Distillation(teacher, 0.5, mask)).loss
    torch.testing.assert_close((loss - plain).double(), 0.5 * expected.detach(), rtol=1e-4, atol=0)
    (loss - plain).backward()
    for name, each in model.named_parameters():
        if each.requires_grad:
            torch.testing.assert_close(each.grad, 0.5 * wanted[name], rtol=1e-3, atol=1e-6)


def test_evaluation_may_have_logits_beside_it(batch):
    tokens, labels, *_ = batch
    model = lrk.patch(model_of("llama")).eval()
    found = model(
        tokens, labels=labels, distillation=Distillation(hidden_of(model, tokens.flip(0)), 1.0)
    )
    assert found.logits.shape == (2, LENGTH, VOCABULARY)
    assert found.divergence > 0
    assert found.to_tuple()[1] is found.logits


def test_hidden_states_alone(batch):
    tokens, labels, *_ = batch
    model = lrk.patch(model_of("granite"))
    found = model(tokens, output_last_hidden=True)
    assert found.logits is None
    assert found.loss is None
    expected = model.model(tokens).last_hidden_state
    torch.testing.assert_close(found.last_hidden_state, expected, rtol=0, atol=0)
    for beside in ({"labels": labels}, {"output_logits": True}):
        with pytest.raises(ValueError, match="output_last_hidden is true with labels or output_"):
            model(tokens, output_last_hidden=True, **beside)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": None}, "distillation is given without labels, beside"),
        ({"weight": -1.0}, r"distillation\.weight is -1\.0; it must be 0 or positive"),
        ({"weight": float("nan")}, r"distillation\.weight is nan"),
        ({"hidden": torch.zeros(2, LENGTH + 1, 64)}, r"hidden has shape \(2, 14, 64\); it must be"),
        (
            {"hidden": torch.zeros(LENGTH, 64)},
            r"hidden has shape \(13, 64\); it must be \(2, 13",
        ),
        ({"hidden": torch.zeros(2, 0, 64)}, r"hidden has shape \(2, 0, 64\)"),
        ({"hidden": torch.zeros(2, LENGTH, 5)}, r"\(2, 13, 5\); .* and the model's hidden size"),
        ({"mask": torch.ones(2, LENGTH)}, r"distillation\.mask is torch\.float32 of shape"),
        ({"mask": torch.ones(LENGTH, dtype=torch.bool)}, r"mask is torch\.bool of shape \(13,\)"),
        (
            {"head": TeacherHead(torch.zeros(60, 64), None, LogitScale(None, None))},
            "distillation.head has a vocabulary of 60, the model one of 61; teacher and",
        ),
    ],
)
def test_what_does_not_fit_is_refused(batch, change, sentence):
    tokens, labels, *_ = batch
    model = lrk.patch(model_of("llama", hidden_size=64))
    given = {"hidden": torch.zeros(2, LENGTH, 64), "weight": 1.0, "labels": labels} | change
    labels = given.pop("labels")
    with pytest.raises(ValueError, match=sentence):
        model(tokens, labels=labels, distillation=Distillation(**given))


def test_a_head_that_processes_share_by_rows_is_refused(batch, monkeypatch):
    tokens, labels, *_ = batch
    model = lrk.patch(model_of("llama"))
    hidden = hidden_of(model, tokens)
    monkeypatch.setattr(
        "lrk.hf.head.head_of",
        lambda head, hidden, drops=True: Head(hidden, head.weight, None, Rows(None, 122)),
    )
    monkeypatch.setattr(
        "lrk.hf.head.vocab_parallel_linear_cross_entropy", lambda **factors: torch.zeros(())
    )
    with pytest.raises(ValueError, match=r"lm_head is divided among processes by rows \(tp_plan\)"):
        model(tokens, labels=labels, distillation=Distillation(hidden, 1.0))


def test_a_teacher_with_adapters_on_its_head_is_refused():
    model = peft.get_peft_model(model_of("llama"), peft.LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match=r"the teacher's lm_head is a peft\.\S+Linear; it must be"):
        TeacherHead.of(model.get_base_model())


def step(model, tokens):
    hidden = hidden_of(model, tokens.flip(0))
    loss = model(tokens, labels=tokens, distillation=Distillation(hidden, 0.5)).loss
    loss.backward()
    return loss.detach(), {name: each.grad for name, each in model.named_parameters()}


def fsdp_rank(model, tokens):
    dist.init_process_group("gloo")
    lrk.patch(model)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard([model.model.norm, model.lm_head])
    fully_shard(model)
    loss, gradients = step(model, tokens)
    return loss, {name: each.full_tensor() for name, each in gradients.items()}


def test_a_head_whose_weight_fsdp_brings(batch):
    tokens, *_ = batch
    model = model_of("llama")
    expected = step(lrk.patch(copy.deepcopy(model)), tokens)
    for loss, gradients in run_ranks(fsdp_rank, 2, model, tokens):
        torch.testing.assert_close(loss, expected[0])
        for name, each in gradients.items():
            torch.testing.assert_close(each, expected[1][name], rtol=1e-4, atol=1e-6, msg=name)

"""`torch.compile(model, fullgraph=True)`: no graph break, the same numbers, the same refusals."""

import copy
import shutil

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from transformers import StaticCache

import lrk
from lrk.hf.cache_name import named_cache
from lrk.train.extension import extend

INPUT_IDS = torch.arange(2, 26).view(2, 12)
SKIPPED = torch.tensor([[0, 1, 2, 3, 50, 51, 52, 53, 90, 91, 92, 93]])
BOUNDARIES = torch.tensor([0, 12, 18, 24], dtype=torch.int32)
LEFT_PADDING = torch.ones_like(INPUT_IDS)
LEFT_PADDING[1, :5] = 0
INPUTS = {
    "left padding": {"attention_mask": LEFT_PADDING},
    "packed documents": {
        "position_ids": torch.cat([SKIPPED, SKIPPED[:, :6].repeat(1, 2)]),
        "cu_seq_lens_q": BOUNDARIES,
        "cu_seq_lens_k": BOUNDARIES,
    },
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def llama(llama):
    return shallow(llama)


@pytest.fixture
def stock(stock):
    return shallow(stock)


def shallow(model):
    """Tracing takes as long as a model is deep: a second layer only where it is another kind."""
    if len(set(getattr(model.config, "layer_types", None) or ["the same"])) == 1:
        model.config.num_hidden_layers = 1
        model.model.layers = model.model.layers[:1]
    return model


def compiled(model, backend="aot_eager"):
    return torch.compile(model, fullgraph=True, backend=backend)


def step(model, parameters, **inputs):
    for each in parameters:
        each.grad = None
    loss = model(INPUT_IDS, labels=INPUT_IDS, use_cache=False, **inputs).loss
    loss.backward()
    return loss.detach(), [each.grad for each in parameters]


def assert_same_step(model, backend="aot_eager", **inputs):
    parameters = list(model.parameters())
    loss, gradients = step(compiled(model, backend), parameters, **inputs)
    expected_loss, expected = step(model, parameters, **inputs)
    torch.testing.assert_close(loss, expected_loss)
    for gradient, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.support("torch.compile(fullgraph=True), training step")
def test_training_step_on_skipped_positions(stock):
    if hasattr(stock.config, "num_experts_per_tok"):
        try:
            assert_same_step(stock)
        except TorchDynamoException:
            pytest.skip("this transformers' experts are not compiled in a stock model either")
    assert_same_step(lrk.patch(stock), position_ids=SKIPPED)


@pytest.mark.parametrize("inputs", [pytest.param(each, id=name) for name, each in INPUTS.items()])
def test_training_step_on_other_inputs(llama, inputs):
    assert_same_step(lrk.patch(llama), **inputs)


def test_checkpointing_inside_the_graph(llama, checkpointed):
    model = checkpointed(lrk.patch(llama), use_reentrant=False)
    assert_same_step(model, position_ids=SKIPPED)


@torch.no_grad()
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++ for a CPU")
def test_inductor(llama):
    """Forward alone: compiling a training step costs half a minute."""
    model = lrk.patch(llama).model
    inputs = {"position_ids": SKIPPED, "use_cache": False}
    hidden = compiled(model, "inductor")(INPUT_IDS, **inputs).last_hidden_state
    torch.testing.assert_close(hidden, model(INPUT_IDS, **inputs).last_hidden_state)


def test_one_graph_serves_all_positions(llama):
    model = compiled(lrk.patch(llama))
    for step in (1, 3, 7):
        model(INPUT_IDS, labels=INPUT_IDS, position_ids=SKIPPED * step, use_cache=False)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_graph_follows_the_model(llama):
    """Its frequencies, its attention, its classes: what changes is traced again."""
    model = compiled(lrk.patch(llama))

    def assert_follows():
        with torch.no_grad():
            logits = (each(INPUT_IDS, use_cache=False).logits for each in (model, llama))
            torch.testing.assert_close(*logits)

    assert_follows()
    extend(llama, 4096)
    assert_follows()
    llama.set_attn_implementation("eager")
    assert_follows()
    lrk.unpatch(llama)
    assert_follows()


def test_bad_positions_and_masks_are_refused_by_a_graph_that_has_seen_good_ones(llama):
    model = compiled(lrk.patch(llama))
    inputs = {"labels": INPUT_IDS, "use_cache": False}
    model(INPUT_IDS, position_ids=SKIPPED, **inputs)
    with pytest.raises(ValueError, match="position_ids start again inside a row"):
        model(INPUT_IDS, position_ids=SKIPPED % 50, **inputs)
    with pytest.raises(ValueError, match="position_ids has a negative entry, -1"):
        model(INPUT_IDS, position_ids=SKIPPED - 1, **inputs)
    model(INPUT_IDS, attention_mask=LEFT_PADDING, **inputs)
    hole = LEFT_PADDING.clone()
    hole[0, 5] = 0
    with pytest.raises(ValueError, match="attention_mask has zeros between the ones of row 0"):
        model(INPUT_IDS, attention_mask=hole, **inputs)


def test_skipped_positions_are_refused_on_a_stock_backend(llama):
    model = compiled(lrk.patch(llama, attention=False))
    inputs = {"labels": INPUT_IDS, "use_cache": False}
    model(INPUT_IDS, position_ids=torch.arange(12)[None], **inputs)
    with pytest.raises(ValueError, match="position_ids skip, and the attention implementation"):
        model(INPUT_IDS, position_ids=SKIPPED, **inputs)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_model_made_on_the_meta_device(llama):
    """Its frequencies are made in the first forward pass: inside the graph."""
    config = llama.config
    with torch.device("meta"):
        model = lrk.patch(type(llama)(config))
    model.load_state_dict(llama.state_dict(), assign=True)
    with torch.no_grad():
        logits = compiled(model)(INPUT_IDS, use_cache=False).logits
        torch.testing.assert_close(logits, llama(INPUT_IDS).logits)


@torch.no_grad()
@pytest.mark.support("torch.compile(fullgraph=True), static cache")
def test_decoding_with_a_static_cache(stock):
    plain = copy.deepcopy(stock).eval()
    plain.set_attn_implementation("eager")
    expected = plain(INPUT_IDS).logits
    patched = lrk.patch(stock).eval()
    cache = StaticCache(config=stock.config, max_cache_len=16)
    patched(INPUT_IDS[:, :9], **named_cache(cache))
    model = compiled(patched)
    for index in range(9, 12):
        position_ids = torch.full((1, 1), index)
        logits = model(
            INPUT_IDS[:, index : index + 1], position_ids=position_ids, **named_cache(cache)
        ).logits
        torch.testing.assert_close(logits[:, 0], expected[:, index])
    # transformers counts the tokens of a sliding window in a Python integer until it is full.
    assert counters["stats"]["unique_graphs"] <= 2

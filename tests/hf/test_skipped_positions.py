"""Positions that skip: transformers hides what is before a skip, lrk does not (and refuses to)."""

import copy
import re

import pytest
import torch

import lrk
from lrk.hf.architectures import architecture_of_type
from lrk.hf.cache_name import cache_of, named_cache
from lrk.hf.canary import tiny_config, tiny_model
from lrk.hf.stock_forward import hands_on

# Segments of four tokens at 0, 50 and 90; the second document starts at token 8 of row 1.
SKIPPED = torch.tensor([[0, 1, 2, 3, 50, 51, 52, 53, 90, 91, 92, 93]])
INPUT_IDS = torch.arange(2, 14)[None]


@pytest.fixture
def prepared(checkpointed):
    def prepare(model, checkpointing):
        return checkpointed(model) if checkpointing else model.train()

    return prepare


def logits_after_edit(model, **inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits before and after token 1 is replaced."""
    edited = INPUT_IDS.clone()
    edited[0, 1] = 40
    before = model(INPUT_IDS, use_cache=False, **inputs).logits
    return before[0], model(edited, use_cache=False, **inputs).logits[0]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_stock_transformers_hides_what_is_before_a_skip(llama, prepared, backend, checkpointing):
    llama.set_attn_implementation(backend)
    model = prepared(llama, checkpointing)
    before, after = logits_after_edit(model, position_ids=SKIPPED)
    assert not torch.equal(before[1:4], after[1:4])
    assert torch.equal(before[4:], after[4:]), (
        "transformers has mended the trap: say so in the docs"
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lrk_sees_across_a_skip(llama, prepared, checkpointing):
    model = prepared(lrk.patch(llama), checkpointing)
    before, after = logits_after_edit(model, position_ids=SKIPPED)
    assert torch.equal(before[0], after[0])
    changed = (before - after).abs().amax(-1)
    assert (changed[1:] > 1e-4).all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_flow_across_a_skip(llama, prepared, checkpointing):
    model = prepared(lrk.patch(llama), checkpointing)
    embeddings = model.get_input_embeddings()(INPUT_IDS).detach().requires_grad_()
    labels = torch.full_like(INPUT_IDS, -100)
    labels[0, -1] = 5
    model(
        inputs_embeds=embeddings, labels=labels, position_ids=SKIPPED, use_cache=False
    ).loss.backward()
    assert (embeddings.grad[0, :11].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_other_documents_stay_hidden(llama, prepared, checkpointing):
    model = prepared(lrk.patch(llama), checkpointing)
    boundaries = torch.tensor([0, 6, 12], dtype=torch.int32)
    positions = torch.tensor([[0, 1, 2, 70, 71, 72, 0, 1, 40, 41, 42, 90]])
    documents = {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries}
    before, after = logits_after_edit(model, position_ids=positions, **documents)
    assert ((before - after).abs().amax(-1)[1:6] > 1e-4).all()
    assert torch.equal(before[6:], after[6:])


def masks_of_positions(config, position_ids) -> torch.Tensor | dict[str, torch.Tensor]:
    """(1, 1, S, S) masks for stock attention: causal, and windows that count positions."""
    length = position_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    distance = position_ids[0, :, None] - position_ids[0]
    window = getattr(config, "sliding_window", None)
    visible = {
        "full_attention": causal,
        "sliding_attention": causal if window is None else causal & (distance < window),
    }
    lowest = torch.finfo(torch.float32).min
    masks = {
        kind: torch.zeros(length, length).masked_fill(~seen, lowest)[None, None]
        for kind, seen in visible.items()
    }
    if getattr(config, "layer_types", None):
        return masks
    return masks["sliding_attention"]


@pytest.mark.support("skipped positions")
def test_as_stock_attention_with_the_right_mask(stock):
    """Also rates by position, sinks, layers that do not rotate and windows of some layers."""
    assert_as_masked(stock)


@pytest.mark.parametrize("model_type", ["ministral3", "mixtral", "phi3", "qwen3_moe"])
def test_a_window_of_all_layers(model_type):
    """It counts positions, and is refused where the attention is not told of them."""
    torch.manual_seed(0)
    config = tiny_config(model_type, sliding_window=45)
    if hands_on(architecture_of_type(model_type).attention, "position_ids"):
        assert_as_masked(tiny_model(config).train())
    else:
        with pytest.raises(ValueError, match="keeps position_ids to itself"):
            lrk.patch(tiny_model(config))


def assert_as_masked(stock):
    model = lrk.patch(copy.deepcopy(stock))
    stock.set_attn_implementation("eager")
    masks = masks_of_positions(stock.config, SKIPPED)
    shared = {"position_ids": SKIPPED, "labels": INPUT_IDS, "use_cache": False}
    expected = stock(INPUT_IDS, attention_mask=masks, **shared)
    expected.loss.backward()
    ours = model(INPUT_IDS, output_logits=True, **shared)
    ours.loss.backward()
    torch.testing.assert_close(ours.logits, expected.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.loss, expected.loss)
    for (name, theirs), own in zip(stock.named_parameters(), model.parameters(), strict=True):
        error = (own.grad - theirs.grad).abs().max() / theirs.grad.abs().max().clamp(min=1e-6)
        assert error < 1e-3, name


def test_a_window_counts_positions():
    torch.manual_seed(0)
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.2,
        sliding_window=50,
    )
    model = lrk.patch(MistralForCausalLM(config))
    before, after = logits_after_edit(model, position_ids=SKIPPED)
    changed = (before - after).abs().amax(-1) > 0
    # Token 1 is at position 1: within 50 positions are those at 1, 2, 3 and 50.
    assert changed.tolist() == [False, True, True, True, True] + [False] * 7


def test_refused_on_a_stock_backend(llama):
    sentence = r"position_ids skip, and the attention implementation 'sdpa' takes every skip for"
    lrk.patch(llama, attention=False)
    with pytest.raises(ValueError, match=sentence):
        llama(INPUT_IDS, position_ids=SKIPPED, labels=INPUT_IDS)
    lrk.patch(llama)
    llama(INPUT_IDS, position_ids=SKIPPED, labels=INPUT_IDS)
    llama.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=sentence):
        llama(INPUT_IDS, position_ids=SKIPPED, labels=INPUT_IDS)
    llama(INPUT_IDS, labels=INPUT_IDS)
    llama.set_attn_implementation("lrk")
    llama(INPUT_IDS, position_ids=SKIPPED, labels=INPUT_IDS)


def test_restarts_without_explicit_documents_are_refused(llama):
    lrk.patch(llama)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]])
    with pytest.raises(ValueError, match=r"position_ids start again inside a row: pass .* cu_seq"):
        llama(INPUT_IDS, position_ids=positions)


def test_padding_may_repeat_positions(llama):
    lrk.patch(llama)
    mask = torch.ones_like(INPUT_IDS)
    mask[0, :3] = 0
    positions = torch.tensor([[1, 1, 1, 0, 1, 2, 3, 50, 51, 52, 53, 54]])
    llama(INPUT_IDS, position_ids=positions, attention_mask=mask)


@pytest.mark.parametrize(
    ("positions", "sentence"),
    [
        (torch.arange(12), r"position_ids has shape \(12,\); it must be \(1, 12\)"),
        (torch.arange(11)[None], r"position_ids has shape \(1, 11\) for 12 tokens a row"),
        (torch.arange(36).view(3, 12), r"position_ids has shape \(3, 12\); it must be \(1, 12\)"),
        (torch.arange(-1, 11)[None], "position_ids has a negative entry, -1"),
        (torch.arange(12.0)[None], "position_ids has dtype torch.float32"),
    ],
)
def test_bad_positions_are_named(llama, positions, sentence):
    with pytest.raises(ValueError, match=sentence):
        lrk.patch(llama)(INPUT_IDS, position_ids=positions)


def test_padded_documents_are_refused(llama):
    lrk.patch(llama)
    mask = torch.ones_like(INPUT_IDS)
    mask[0, :6] = 0
    boundaries = torch.tensor([0, 6, 12], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"attention_mask has padding and cu_seq_lens_q packs"):
        llama(INPUT_IDS, attention_mask=mask, cu_seq_lens_q=boundaries, cu_seq_lens_k=boundaries)
    with pytest.raises(ValueError, match=r"the lrk attention takes a .batch, length. padding mask"):
        llama(INPUT_IDS, attention_mask=torch.ones(1, 1, 12, 12))


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("positions", [None, torch.arange(8)[None]])
@pytest.mark.parametrize("rows_columns", [(2, 12), (2, 7), (3, 8), (1, 8)])
def test_a_padding_mask_has_a_row_and_a_column_for_each_token(
    llama, patched, positions, rows_columns
):
    model = lrk.patch(llama) if patched else llama
    model.set_attn_implementation("lrk")
    mask = torch.ones(rows_columns, dtype=torch.int64)
    sentence = rf"attention_mask has shape {re.escape(str(rows_columns))}; it must be \(2, 8"
    for first in (0, 1):
        mask[0, 0] = first
        with pytest.raises(ValueError, match=sentence):
            model(INPUT_IDS[:, :8].repeat(2, 1), attention_mask=mask, position_ids=positions)


def test_a_padding_mask_covers_the_cache(llama):
    model = lrk.patch(llama).eval()
    cache = cache_of(model(INPUT_IDS[:, :8], use_cache=True))
    step = INPUT_IDS[:, 8:9]
    with pytest.raises(ValueError, match=r"has shape \(1, 1\); it must be \(1, 9\): a column for"):
        model(step, attention_mask=torch.ones_like(step), **named_cache(cache))
    model(step, attention_mask=torch.ones(1, 9), **named_cache(cache))

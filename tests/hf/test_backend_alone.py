"""`attn_implementation="lrk"` without `lrk.patch`: what reaches it is obeyed or refused."""

import copy

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    DataCollatorWithFlattening,
    T5Config,
    T5ForConditionalGeneration,
)

import lrk
from lrk.hf import attention as backend
from lrk.hf.document_boundaries import document_boundaries
from lrk.hf.mask_functions import check_mask_function

VOCABULARY = 61
GENERATOR = torch.Generator().manual_seed(1)
TOKENS = torch.randint(2, VOCABULARY, (2, 24), generator=GENERATOR)
DECODED = torch.randint(2, VOCABULARY, (2, 9), generator=GENERATOR)
PADDED = torch.ones_like(TOKENS)
PADDED[0, -5:] = PADDED[1, :3] = 0
RESTARTED = torch.tensor([[*range(10), *range(14)]])
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def causal_lm(model_type, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SHAPE | settings)
    return AutoModelForCausalLM.from_config(config).eval()


def on(backend, model):
    model = copy.deepcopy(model)
    model.set_attn_implementation(backend)
    return model


@torch.no_grad()
def assert_as_eager(model, real=..., **inputs):
    expected, ours = (on(backend, model)(**inputs)[0][real] for backend in ("eager", "lrk"))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("qwen3", {}),
        ("mixtral", {}),
        ("phi3", {}),
        ("gemma2", {"sliding_window": 8}),
        ("gemma3_text", {"sliding_window": 8}),
        ("olmo3", {"sliding_window": 8}),
        ("cohere2", {"sliding_window": 8}),
        ("starcoder2", {"sliding_window": 8}),
        ("smollm3", {}),
        ("granite", {}),
    ],
)
def test_other_causal_models_compute_what_eager_computes(model_type, settings):
    model = causal_lm(model_type, **settings)
    for options in ({}, {"use_cache": False}):
        assert_as_eager(model, input_ids=TOKENS, **options)
    assert_as_eager(model, PADDED.bool(), input_ids=TOKENS, attention_mask=PADDED)


def test_cross_attention_to_a_padded_encoder():
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        init_std=0.2,
    )
    model = BartForConditionalGeneration(config).eval()
    for mask in (None, PADDED):
        inputs = {"input_ids": TOKENS, "attention_mask": mask, "decoder_input_ids": DECODED}
        assert_as_eager(model, **inputs)


def test_an_encoder():
    torch.manual_seed(0)
    settings = {name: SHAPE[name] for name in list(SHAPE)[:5]}
    model = BertModel(BertConfig(**settings, initializer_range=0.2)).eval()
    assert_as_eager(model, input_ids=TOKENS)
    assert_as_eager(model, PADDED.bool(), input_ids=TOKENS, attention_mask=PADDED)


def test_a_causal_model_that_is_told_to_look_ahead():
    model = causal_lm("qwen3").model
    assert_as_eager(model, input_ids=TOKENS, is_causal=False)


@torch.no_grad()
@pytest.mark.parametrize("backend_alone", ["llama", "qwen3"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_documents_that_only_positions_tell(backend_alone, compiled):
    model = on("lrk", causal_lm(backend_alone))
    forward = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    inputs = {"input_ids": TOKENS[:1], "use_cache": False}
    with pytest.raises(ValueError, match="position_ids start again inside a row: pass the bound"):
        forward(position_ids=RESTARTED, **inputs)
    # Skips are what lrk is for, and boundaries say it all.
    skipped = 3 * torch.arange(24)[None]
    first = forward(position_ids=skipped, **inputs).logits
    torch.testing.assert_close(first, model(position_ids=skipped, **inputs).logits)
    ends = torch.tensor([0, 10, 24], dtype=torch.int32)
    documents = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
    packed = forward(position_ids=RESTARTED, **inputs, **documents).logits[0]
    alone = [model(part[None], use_cache=False).logits[0] for part in TOKENS[0].split([10, 14])]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_layers_before_the_first_that_attends():
    """In a hybrid the first layers have no attention that could look at the positions."""
    layer_types = ["conv", "full_attention"]
    model = on("lrk", causal_lm("lfm2", layer_types=layer_types))
    with pytest.raises(ValueError, match="position_ids start again"):
        model(TOKENS[:1], position_ids=RESTARTED, use_cache=False)


@torch.no_grad()
def test_positions_are_looked_at_once_and_again_when_written_to(monkeypatch):
    looks = []
    look = backend._boundaries_of_rows
    monkeypatch.setattr(
        backend, "_boundaries_of_rows", lambda *given: looks.append(given) or look(*given)
    )
    model = on("lrk", causal_lm("llama"))
    positions = torch.arange(24)[None]
    for _ in range(2):
        model(TOKENS[:1], position_ids=positions, use_cache=False)
    assert len(looks) == 1
    positions.copy_(RESTARTED)
    with pytest.raises(ValueError, match="position_ids start again"):
        model(TOKENS[:1], position_ids=positions, use_cache=False)
    with torch.inference_mode(), pytest.raises(ValueError, match="position_ids start again"):
        model(TOKENS[:1], position_ids=RESTARTED.clone(), use_cache=False)


@torch.no_grad()
def test_the_collator_that_packs():
    """Without boundaries refused; with them as stock computes it from the positions."""
    model = causal_lm("llama")
    texts = [{"input_ids": part.tolist()} for part in TOKENS[0].split([10, 14])]
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    batch = {name: x for name, x in collate(texts, return_tensors="pt").items() if x is not None}
    plain = {name: batch[name] for name in ("input_ids", "labels", "position_ids")}
    expected = on("sdpa", model)(**plain, use_cache=False).loss
    ours = on("lrk", model)
    torch.testing.assert_close(ours(**batch, use_cache=False).loss, expected)
    with pytest.raises(ValueError, match="start again"):
        ours(**plain, use_cache=False)
    with pytest.raises(ValueError, match="seq_idx packs documents; give their boundaries"):
        ours(**plain, seq_idx=batch["seq_idx"], use_cache=False)


@torch.no_grad()
@pytest.mark.parametrize(
    ("model_type", "settings", "sentence"),
    [
        ("llama4_text", {"attention_chunk_size": 8}, "masks its attention by chunked_overlay"),
        ("phimoe", {"sliding_window": 8}, "sliding_window is 8, but PhimoeAttention does not hand"),
        (
            "qwen2_moe",
            {"sliding_window": 8, "use_sliding_window": True},
            "sliding_window is 8, but Qwen2MoeAttention does not hand",
        ),
    ],
)
def test_what_the_backend_has_not_is_refused(model_type, settings, sentence):
    model = on("lrk", causal_lm(model_type, **settings))
    for options in ({}, {"use_cache": False}):
        with pytest.raises(ValueError, match=sentence):
            model(TOKENS, **options)


@torch.no_grad()
def test_chunks_are_refused_in_a_compiled_model():
    """Whose mask functions nobody can look at."""
    model = on("lrk", causal_lm("llama4_text", attention_chunk_size=8))
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match="attention_chunk_size is 8, but Llama4TextAttention does"):
        compiled(TOKENS, use_cache=False)


@torch.no_grad()
def test_a_bias_by_position_is_refused():
    torch.manual_seed(0)
    config = T5Config(vocab_size=VOCABULARY, d_model=64, num_layers=2, d_kv=16, num_heads=4)
    model = T5ForConditionalGeneration(config).eval()
    inputs = {"input_ids": TOKENS, "decoder_input_ids": DECODED}
    ours = on("lrk", model)
    if ours.encoder.config._attn_implementation != "lrk":
        assert_as_eager(
            model, **inputs
        )  # older releases attend in their own way, whatever is asked
        return
    with pytest.raises(ValueError, match="position_bias reached the lrk attention"):
        ours(**inputs)


@torch.no_grad()
@pytest.mark.parametrize("patched", [False, True], ids=["alone", "patched"])
def test_an_argument_that_nobody_knows_is_refused(patched):
    model = causal_lm("llama")
    model = lrk.patch(model) if patched else on("lrk", model)
    with pytest.raises(ValueError, match="kv_store reached the lrk attention"):
        model(TOKENS, kv_store={})
    model(TOKENS, kv_store=None, output_hidden_states=True, num_items_in_batch=3)
    model(TOKENS, token_type_ids=torch.zeros_like(TOKENS), output_attentions=False)


@torch.no_grad()
def test_a_mask_function_of_ones_own_is_refused():
    def causal_mask_function(batch, head, query, key):
        return key % 2 == 0

    with pytest.raises(ValueError, match=r"test_backend_alone\.test_a_mask.* does not have"):
        check_mask_function(causal_mask_function)
    with pytest.raises(ValueError, match="which the lrk attention does not have"):
        document_boundaries(1, 4, 4, mask_function=causal_mask_function)

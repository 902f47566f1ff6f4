"""Whether a patched model still computes what the stock one does, with this transformers.

A release can change what lrk relies on without an error: the loss of such a run looks normal, and
generation goes on, with other tokens. So this compares, on a tiny random model of each type,
patched and stock, greedy generation with a cache and without one, with padding before one of the
prompts, and the loss in training, also in tiles. `python -m lrk.env` runs it, and so do the tests.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lrk.frequencies import rope_layer_types
from lrk.hf.attention import BACKEND
from lrk.hf.cache_name import cache_of
from lrk.hf.patch import patch

PROMPT, PADDING, GENERATED = 12, 3, 12
TOLERANCE = 1e-3
"""Of the largest logit. Float32 gives some 1e-6, a lost key a few tenths."""

_VOCABULARY, _TILE = 61, 5
_EXPERTS = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
_KINDS_OF_LAYERS = ["sliding_attention", "full_attention"]
_OF_TYPE: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 7, "query_pre_attn_scalar": 16, "layer_types": _KINDS_OF_LAYERS},
    "gemma3_text": {
        "sliding_window": 7,
        "query_pre_attn_scalar": 16,
        "layer_types": _KINDS_OF_LAYERS,
        "final_logit_softcapping": 5.0,
    },
    "glm4": {"partial_rotary_factor": 0.5},
    "gpt_oss": _EXPERTS
    | {
        "sliding_window": 7,
        "layer_types": _KINDS_OF_LAYERS,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 15e4,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "truncate": False,
        },
    },
    "granite": {
        "logits_scaling": 3.0,
        "residual_multiplier": 0.7,
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.5,
    },
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.5,
        }
    },
    "mixtral": _EXPERTS,
    "olmo3": {"sliding_window": 7, "layer_types": _KINDS_OF_LAYERS},
    "phi3": {"partial_rotary_factor": 0.5},
    "qwen3_moe": _EXPERTS,
    "smollm3": {"no_rope_layer_interval": 2},
}
"""What each type is known for, where its default config, or so small a one, has it not."""

_SHAPE: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large enough for attention that is far from uniform
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def tiny_config(model_type: str, **settings: Any) -> PretrainedConfig:
    """A config of two layers that has what the type is known for.

    Args:
        model_type: one of `lrk.hf.SUPPORTED`.
        settings: in place of its own.
    """
    config = AutoConfig.for_model(model_type, **_SHAPE | _OF_TYPE.get(model_type, {}) | settings)
    for place, kind in enumerate(rope_layer_types(config)):
        if kind is not None and "rope_parameters" not in settings:
            config.rope_parameters[kind]["rope_theta"] = (1e6, 1e4)[place]
    return config


def tiny_model(config: PretrainedConfig) -> PreTrainedModel:
    """Of `tiny_config`, with random weights of which none is without effect."""
    # PyTorch's attention has no soft cap, and older releases take it for Gemma 2 all the same.
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    attention = {"attn_implementation": "eager"} if capped else {}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **attention)
    for name, parameter in model.named_parameters():
        if name.endswith(("sinks", "norm.weight")):  # constants, by transformers' own choice
            torch.nn.init.normal_(parameter, mean=parameter.data.mean().item(), std=0.2)
    return model


def model_fault(model_type: str, device: torch.device) -> str | None:
    """What is wrong with a patched model's generation or loss, in one line; None if nothing is.

    Args:
        model_type: one of `lrk.hf.SUPPORTED`.
        device: where the models run.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stock = tiny_model(tiny_config(model_type))
        prompt = torch.randint(2, _VOCABULARY, (2, PROMPT))
    stock = stock.eval().to(device)
    prompt = prompt.to(device)
    expected_tokens, expected_logits = _generate(stock, prompt, use_cache=False)
    expected_loss = _loss(stock, prompt)
    for tile_tokens in (0, _TILE):
        if tile_tokens and hasattr(stock.config, "num_experts_per_tok"):
            continue  # refused
        loss = _loss(patch(copy.deepcopy(stock), tile_tokens=tile_tokens), prompt)
        if abs(loss - expected_loss) > TOLERANCE * expected_loss:
            tiles = ", in tiles" if tile_tokens else ""
            return f"patched{tiles}: the loss differs from stock by {abs(loss - expected_loss):.1e}"
    models = {"patched": patch(copy.deepcopy(stock)), f'attention "{BACKEND}" alone': stock}
    stock.set_attn_implementation(BACKEND)
    for name, model in models.items():
        length = _cached_tokens(model, prompt)
        if length != PROMPT:
            return f"{name}: the cache holds {length} of {PROMPT} tokens after a prompt"
        for use_cache in (True, False):
            tokens, logits = _generate(model, prompt, use_cache=use_cache)
            error = (logits - expected_logits).abs().max().item()
            allowed = TOLERANCE * expected_logits.abs().max().item()
            if not torch.equal(tokens, expected_tokens) or error > allowed:
                cached = "with" if use_cache else "without"
                return f"{name}, {cached} a cache: logits differ from stock by {error:.1e}"
    return None


def _loss(model: PreTrainedModel, prompt: Tensor) -> float:
    with torch.random.fork_rng():
        loss = model.train()(prompt, labels=prompt, use_cache=False).loss
    model.eval()
    return loss.item()


def _generate(model: PreTrainedModel, prompt: Tensor, use_cache: bool) -> tuple[Tensor, Tensor]:
    """(B, PROMPT + GENERATED) tokens, and (B, GENERATED, V) logits."""
    generate: Any = model.generate
    attention_mask = torch.ones_like(prompt)
    attention_mask[1, :PADDING] = 0
    output = generate(
        prompt,
        attention_mask=attention_mask,
        max_new_tokens=GENERATED,
        do_sample=False,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.sequences, torch.stack(output.logits, dim=1)


@torch.no_grad()
def _cached_tokens(model: PreTrainedModel, prompt: Tensor) -> int:
    cache = cache_of(model(prompt, use_cache=True))
    return 0 if cache is None else cache.get_seq_length()

"""Whether a patched model still generates what the stock one does, with this transformers.

A release can change what lrk relies on without an error: the loss of such a run looks normal, and
generation goes on, with other tokens. So this compares, on a tiny random model of each type, greedy
generation with a cache and without one, patched and stock, with padding before one of the prompts.
`python -m lrk.env` runs it, and so do the tests.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lrk.hf.attention import BACKEND
from lrk.hf.cache_name import cache_of
from lrk.hf.patch import patch

PROMPT, PADDING, GENERATED = 12, 3, 12
TOLERANCE = 1e-3
"""Of the largest logit. Float32 gives some 1e-6, a lost key a few tenths."""

_VOCABULARY = 61
_SHAPE: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large enough for attention that is far from uniform
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def generation_fault(model_type: str, device: torch.device) -> str | None:
    """What is wrong with a patched model's greedy generation, in one line; None if nothing is.

    Args:
        model_type: one of `lrk.hf.SUPPORTED`.
        device: where the models run.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **_SHAPE)
        stock: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        prompt = torch.randint(2, _VOCABULARY, (2, PROMPT))
    stock = stock.eval().to(device)
    prompt = prompt.to(device)
    expected_tokens, expected_logits = _generate(stock, prompt, use_cache=False)
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

"""Logits of observed tokens, against all logits in float64."""

import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config

import lrk
from lrk.analysis.scores import token_logits

TOKENS = torch.randint(300, (31,), generator=torch.Generator().manual_seed(0))


def test_the_logit_of_the_observed_token_at_skipped_positions(models):
    model = AutoModelForCausalLM.from_pretrained(models[0]).eval()
    positions = torch.arange(31) + 7 * (torch.arange(31) // 10)
    # transformers takes no skips for documents where a mask is given.
    mask = torch.ones_like(TOKENS)[None]
    exact = copy.deepcopy(model).double()
    all_logits = exact(TOKENS[None], position_ids=positions[None], attention_mask=mask).logits[0]
    truth = all_logits[:-1].gather(-1, TOKENS[1:, None])[:, 0]
    found = token_logits(lrk.patch(model), TOKENS, positions)
    assert math.isnan(found[0])
    torch.testing.assert_close(found[1:].double(), truth, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[1:], token_logits(model, TOKENS)[1:]), "positions matter"


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0),
        Gemma2Config(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            initializer_range=0.5,
            final_logit_softcapping=3.0,
        ),
    ],
    ids=["gpt2", "gemma2 with softcap"],
)
def test_models_that_lrk_does_not_patch(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    truth = model(TOKENS[None]).logits[0, :-1].gather(-1, TOKENS[1:, None])[:, 0]
    torch.testing.assert_close(token_logits(model, TOKENS)[1:], truth, rtol=1e-4, atol=1e-4)

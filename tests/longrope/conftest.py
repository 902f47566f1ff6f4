"""A tiny model with a window of 16, patched, and samples of 40 tokens."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lrk
from lrk.longrope.needles import NeedleSample


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
    )
    return lrk.patch(LlamaForCausalLM(config).eval())


@pytest.fixture
def samples() -> list[NeedleSample]:
    """Two texts, then one that is a little shorter."""
    torch.manual_seed(1)
    made = []
    for shape in ((2, 40), (1, 38)):
        ids = torch.randint(50, shape)
        labels = ids.clone()
        labels[:, :-5] = -100
        made.append(NeedleSample(ids, labels))
    return made

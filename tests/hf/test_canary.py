"""The canary is right with the installed release, and sees what a release can break."""

import functools

import pytest
import torch

from lrk.hf import SUPPORTED
from lrk.hf.cache_name import CACHE_NAME
from lrk.hf.canary import model_fault
from lrk.hf.rope import LrkAttention, LrkRotaryEmbedding

CPU = torch.device("cpu")


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_generation_is_that_of_the_stock_model(model_type):
    before = torch.get_rng_state()
    assert model_fault(model_type, CPU) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_a_lost_cache(monkeypatch):
    """As when transformers 5.24 renamed the argument: it was taken for one to hand on."""
    stock = LrkAttention.forward

    @functools.wraps(stock)  # with the same signature, or the patch would be refused
    def forward(self, *args, **kwargs):
        return stock(self, *args, **kwargs | {CACHE_NAME: None})

    monkeypatch.setattr(LrkAttention, "forward", forward)
    fault = model_fault("llama", CPU)
    assert fault == "patched: the cache holds 0 of 12 tokens after a prompt"


def test_other_logits(monkeypatch):
    """As when a release placed generated tokens otherwise."""
    stock = LrkRotaryEmbedding.forward

    @functools.wraps(stock)
    def forward(self, x, position_ids):
        return stock(self, x, position_ids * 2)

    monkeypatch.setattr(LrkRotaryEmbedding, "forward", forward)
    fault = model_fault("qwen2", CPU)
    assert fault.startswith("patched: the loss differs from stock by ")

"""Callers may say `past_key_values` or `cache`; transformers is handed the name of the release."""

import inspect

import pytest
import torch
from transformers import DynamicCache

import lrk
from lrk.decode import pcd, self_extend
from lrk.hf.cache_name import CACHE_NAME, NEW_NAME, OLD_NAME, cache_of
from lrk.hf.rope import LrkAttention

TOKENS = torch.arange(2, 14)[None]
NAMES = (OLD_NAME, NEW_NAME)


@pytest.fixture
def model(llama):
    return lrk.patch(llama.eval(), tile_tokens=5)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["model", "base model"])
def test_a_cache_is_filled_and_used(model, name, part):
    called = model if part == "model" else model.model
    cache = DynamicCache(config=model.config)
    whole = called(TOKENS)[0]
    first = called(TOKENS[:, :7], **{name: cache})
    assert cache_of(first) is cache
    assert cache.get_seq_length() == 7
    rest = called(TOKENS[:, 7:], **{name: cache})[0]
    assert cache.get_seq_length() == 12
    torch.testing.assert_close(rest, whole[:, 7:])


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "decoding", [pcd, lambda model: self_extend(model, window=8, group=2)], ids=["pcd", "mapped"]
)
def test_decoding_methods(model, name, decoding):
    with decoding(model):
        whole = model(TOKENS, use_cache=False).logits
        cache = DynamicCache(config=model.config)
        model(TOKENS[:, :7], **{name: cache})
        rest = model(TOKENS[:, 7:], **{name: cache}).logits
    torch.testing.assert_close(rest, whole[:, 7:])


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_and_its_attention(model, name):
    """As code calls them that walks through the layers itself."""
    layer = model.model.layers[0]
    hidden = model.model.embed_tokens(TOKENS)
    positions = torch.arange(12)[None]
    embeddings = model.model.rotary_emb(hidden, positions)
    for call in (
        lambda **cache: layer(hidden, position_embeddings=embeddings, **cache),
        lambda **cache: layer.self_attn(hidden, embeddings, None, **cache),
    ):
        cache = DynamicCache(config=model.config)
        call(**{name: cache})
        assert cache.get_seq_length() == 12


@torch.no_grad()
def test_by_position_as_in_the_stock_forward(model):
    cache = DynamicCache(config=model.config)
    model(TOKENS, None, None, cache)
    assert cache.get_seq_length() == 12


@torch.no_grad()
def test_two_caches_are_refused(model):
    caches = {name: DynamicCache(config=model.config) for name in NAMES}
    with pytest.raises(ValueError, match="are two names of one argument; give one"):
        model(TOKENS, **caches)
    one = DynamicCache(config=model.config)
    model(TOKENS, **dict.fromkeys(NAMES, one))
    for other, name in (NAMES, NAMES[::-1]):
        model(TOKENS, **{other: None, name: one})
    assert one.get_seq_length() == 36


def test_signatures_bear_the_name_of_the_release(model, llama):
    for each in (model, model.model, model.model.layers[0], model.model.layers[0].self_attn):
        ours = list(inspect.signature(each.forward).parameters)
        theirs = list(inspect.signature(each._lrk_stock.forward).parameters)[1:]
        assert CACHE_NAME in ours
        assert [name for name in ours if name in theirs] == theirs


@torch.no_grad()
@pytest.mark.skipif(CACHE_NAME == OLD_NAME, reason="the stock attention does so from 5.24 on")
def test_a_cache_is_told_what_its_attention_is_told(model):
    """Caches of other packages find their places in the arguments of the forward pass."""

    class Noting(DynamicCache):
        def update(self, *args, **kwargs):
            seen.append(kwargs["kwargs"]["position_ids"].shape)
            return super().update(*args, **kwargs)

    seen = []
    model(TOKENS, **{CACHE_NAME: Noting(config=model.config)})
    with self_extend(model, window=8, group=2):
        model(TOKENS, **{CACHE_NAME: Noting(config=model.config)})
    assert seen == [(1, 12)] * 4
    assert isinstance(model.model.layers[0].self_attn, LrkAttention)

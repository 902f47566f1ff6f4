"""A softmax temperature is a model whose queries are that much shorter."""

import copy

import pytest
import torch

import lrk

TOKENS = torch.arange(2, 22)[None] % 61
POSITIONS = torch.cat([torch.arange(9), torch.arange(120, 131)])[None]
TEMPERATURE = 1.7


def with_shorter_queries(model):
    shorter = copy.deepcopy(model)
    for layer in shorter.model.layers:
        layer.self_attn.scaling /= TEMPERATURE
    return shorter


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_temperature_divides_the_scores(stock, checkpointed, checkpointing):
    expected = lrk.patch(with_shorter_queries(stock))
    model = checkpointed(lrk.patch(stock)) if checkpointing else lrk.patch(stock)
    inputs = {"labels": TOKENS, "position_ids": POSITIONS, "use_cache": False}
    loss = model(TOKENS, attention_temperature=TEMPERATURE, **inputs).loss
    torch.testing.assert_close(loss, expected(TOKENS, **inputs).loss)
    assert not torch.isclose(loss, model(TOKENS, **inputs).loss, rtol=1e-3)
    loss.backward()
    expected(TOKENS, **inputs).loss.backward()
    torch.testing.assert_close(
        next(model.model.layers[0].mlp.parameters()).grad,
        next(expected.model.layers[0].mlp.parameters()).grad,
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_a_temperature_is_positive(llama, temperature):
    with pytest.raises(ValueError, match=f"attention_temperature is {temperature}; it must be"):
        lrk.patch(llama)(TOKENS, attention_temperature=temperature)


def test_stock_attention_would_ignore_it(llama):
    model = lrk.patch(llama, attention=False)
    with pytest.raises(ValueError, match="attention implementation 'sdpa' ignores"):
        model(TOKENS, attention_temperature=1.2)

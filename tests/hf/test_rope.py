"""RoPE in a patched model: what stock computes, of every type, unless positions skip."""

import logging

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRotaryEmbedding

import lrk
from lrk.frequencies import rope_frequencies
from lrk.hf.rope import check_frequencies
from lrk.kernels.rope import phase_increments

WINDOW = 24
PARAMETERS = {
    "default": {},
    "a factor that is ignored": {"rope_type": "default", "partial_rotary_factor": 0.5},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": WINDOW},
    "longrope": {
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": WINDOW,
    },
}
# Within the window and beyond, in any order.
LENGTHS = [9, WINDOW, 40, 60, 9, WINDOW + 1]


def make(shape, name: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    parameters = {"rope_type": name, "rope_theta": 1e4} | PARAMETERS[name]
    window = 4 * WINDOW if name in ("yarn", "longrope") else WINDOW
    config = LlamaConfig(**shape | {"max_position_embeddings": window}, rope_parameters=parameters)
    return LlamaForCausalLM(config)


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(2, 61, (rows, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_length_as_stock(shape, name):
    """Also in training, and in a compiled model."""
    for training in (False, True):
        ours = lrk.patch(make(shape, name).train(training))
        compiled = torch.compile(ours, backend="eager", fullgraph=True)
        for length in LENGTHS:
            ids = tokens(2, length)
            # A model of its own each time: the stock one remembers the longest text.
            expected = make(shape, name)(ids).logits
            positions = torch.arange(length)[None]
            for options in ({}, {"position_ids": positions}):
                torch.testing.assert_close(ours(ids, **options).logits, expected)
        if name == "dynamic":
            ids = tokens(2, LENGTHS[2])
            logits = compiled(ids, use_cache=False).logits
            torch.testing.assert_close(logits, make(shape, name)(ids).logits)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_generation_beyond_the_window_as_stock(shape, name):
    mask = torch.ones(2, WINDOW - 3, dtype=torch.int64)
    mask[1, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    stock = make(shape, name).eval()
    stock.set_attn_implementation("eager")
    expected, ours = (
        model.generate(tokens(2, WINDOW - 3) * mask, **options)
        for model in (stock, lrk.patch(make(shape, name).eval()))
    )
    assert torch.equal(ours.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(expected.logits))


@pytest.mark.parametrize(
    ("name", "last", "longest"),
    [
        ("dynamic", 20, False),  # inside the window frequencies are the same at all lengths
        ("dynamic", 30, True),
        ("longrope", 20, True),
        ("longrope", 30, True),
    ],
)
def test_positions_that_skip_stand_for_a_whole_window(shape, name, last, longest):
    rotary = lrk.patch(make(shape, name)).model.rotary_emb
    whole = phase_increments(rope_frequencies(rotary.config).inv_freq)
    positions = torch.tensor([[0, 1, 2, 3], [0, 1, last - 1, last]])
    _, (increments, _) = rotary(torch.empty(2, 4), positions)
    assert torch.equal(increments, whole) == longest
    # Neither a cache nor padding nor another document is a skip.
    for row in ([20, 21, 22, 23], [1, 1, 0, 1], [5, 6, 0, 1], [3, 0, 0, 4]):
        _, (increments, _) = rotary(torch.empty(1, 4), torch.tensor([row]))
        assert not torch.equal(increments, whole)


@pytest.mark.parametrize("name", ["dynamic", "longrope", "yarn"])
def test_what_is_not_transformers_is_said_once(shape, name, caplog):
    lrk.hf.rope._logger.warning_once.cache_clear()
    model = make(shape, name)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        for _ in range(2):
            lrk.patch(model)
    said = [
        text for text in caplog.messages if "where positions skip, lrk takes those of 96" in text
    ]
    assert len(said) == (0 if name == "yarn" else 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rope_type": "yarn", "factor": 4.0, "partial_rotary_factor": 0.5},
        {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5},
    ],
)
def test_frequencies_that_transformers_cannot_use_are_refused(shape, wrong):
    parameters = {"rope_theta": 1e4, "original_max_position_embeddings": WINDOW} | wrong
    model = LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=parameters))
    with pytest.raises(ValueError, match="of which lrk makes other frequencies than transformers"):
        lrk.patch(model)
    assert type(model.model.rotary_emb) is LlamaRotaryEmbedding
    lrk.patch(model, rope=False)


def test_a_release_that_computes_other_frequencies_is_refused(llama, monkeypatch):
    stock = LlamaRotaryEmbedding.compute_default_rope_parameters

    def other(config):
        inv_freq, scaling = stock(config)
        return inv_freq, 1.01 * scaling

    check_frequencies(llama.model.rotary_emb)
    monkeypatch.setattr(
        LlamaRotaryEmbedding, "compute_default_rope_parameters", staticmethod(other)
    )
    with pytest.raises(ValueError, match="of which lrk makes other frequencies"):
        check_frequencies(llama.model.rotary_emb)

"""A patched model generates the tokens of the stock model with eager attention, in float32."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lrk
from lrk.hf.cache_name import cache_of, named_cache

VOCABULARY = 61
ROWS, LENGTH = 3, 17  # longer than the sliding windows of the models


def prompts(rows: int = ROWS) -> dict[str, torch.Tensor]:
    """Prompts of different lengths, padded on the left."""
    generator = torch.Generator().manual_seed(3)
    input_ids = torch.randint(2, VOCABULARY, (rows, LENGTH), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    for row, padding in enumerate((0, 4, 16)[:rows]):
        attention_mask[row, :padding] = 0
    return {"input_ids": input_ids * attention_mask, "attention_mask": attention_mask}


def generate(model, inputs, **options):
    torch.manual_seed(0)
    settings = {"max_new_tokens": 10, "do_sample": False, "disable_compile": True}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    return model.generate(**inputs, **settings | options)


def assert_same_generation(stock, inputs, **options):
    stock.eval()
    model = lrk.patch(copy.deepcopy(stock))
    stock.set_attn_implementation("eager")
    expected, generated = (generate(each, inputs, **options) for each in (stock, model))
    assert torch.equal(generated.sequences, expected.sequences)
    for ours, theirs in zip(generated.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.support("dynamic cache"), id="dynamic cache"),
        pytest.param(
            {"cache_implementation": "static"},
            marks=pytest.mark.support("static cache"),
            id="static cache",
        ),
        pytest.param({"use_cache": False}, marks=pytest.mark.support("no cache"), id="no cache"),
        pytest.param(
            {"prefill_chunk_size": 5},
            marks=pytest.mark.support("chunked prefill"),
            id="chunked prefill",
        ),
        pytest.param({"num_beams": 3}, marks=pytest.mark.support("beam search"), id="beam search"),
        pytest.param(
            {"do_sample": True, "top_k": 20},
            marks=pytest.mark.support("sampling"),
            id="sampling",
        ),
    ],
)
def test_same_tokens_with_left_padding(stock, options):
    assert_same_generation(stock, prompts(), **options)


@pytest.mark.support("prompt lookup decoding")
def test_prompt_lookup_decoding(stock):
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8] * 4 + [5, 6]])}
    # Some releases of transformers look ids up without one to stop at, and fail.
    assert_same_generation(stock, inputs, prompt_lookup_num_tokens=3, eos_token_id=1)


@pytest.mark.support("assisted decoding")
def test_assisted_decoding(stock):
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=None,
    )
    torch.manual_seed(1)
    assistant = lrk.patch(LlamaForCausalLM(config).eval())
    assert_same_generation(stock, prompts(rows=1), assistant_model=assistant)


@pytest.mark.support("a cache given to generate again")
def test_a_second_turn_on_the_same_cache(stock):
    stock.eval()
    inputs = prompts(rows=1)
    more = torch.tensor([[9, 3, 22]])

    def two_turns(model):
        first = generate(model, inputs)
        sequence = torch.cat([first.sequences, more], dim=1)
        return generate(model, {"input_ids": sequence}, **named_cache(cache_of(first))).sequences

    model = lrk.patch(copy.deepcopy(stock))
    stock.set_attn_implementation("eager")
    assert torch.equal(two_turns(model), two_turns(stock))

"""Batched answers equal one prompt at a time, token by token, from the model's own logits."""

import pytest
import torch

import lrk
from lrk.eval.generation import answers


def greedy(model, ids: list[int], count: int) -> list[int]:
    ids, new = list(ids), []
    for _ in range(count):
        token = model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item()
        if token == model.config.eos_token_id:
            break
        ids.append(token)
        new.append(token)
    return new


PROMPTS = [[5, 9, 300, 17, 8], [44, 3], [7, 7, 7, 120, 6, 1, 2, 99]]


@pytest.mark.parametrize("patched", [False, True])
def test_answers_are_greedy(model, tokenizer, patched):
    expected = [tokenizer.decode(greedy(model, ids, 6)) for ids in PROMPTS]
    assert len(set(expected)) == 3
    # What a model ships as its taste in sampling must not show.
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.generation_config.repetition_penalty = 9.0
    if patched:
        lrk.patch(model)
    assert answers(model, tokenizer, PROMPTS, 6) == expected
    assert answers(model, tokenizer, PROMPTS[:1], 6) == expected[:1]


def test_an_answer_ends_with_the_end_of_text(model, tokenizer):
    second = greedy(model, PROMPTS[0], 2)[1]
    model.config.eos_token_id = model.generation_config.eos_token_id = second
    assert answers(model, tokenizer, PROMPTS[:1], 6) == [
        tokenizer.decode([*greedy(model, PROMPTS[0], 1), second])
    ]

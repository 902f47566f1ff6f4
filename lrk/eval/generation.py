"""Greedy answers, in batches."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lrk.device_map import input_device


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> list[str]:
    """What the model says after each prompt, at most `max_new_tokens` tokens.

    Each token is the most likely one: sampling and penalties that a model's own generation config
    asks for are left out, so that figures can be compared. An answer ends with the model's
    end-of-text tokens.

    Args:
        model: a causal language model of transformers, patched or not.
        tokenizer: decodes the answers; special tokens are left out.
        prompts: token ids. Shorter ones are padded on the left.
        max_new_tokens: at least 1.
    """
    width = max(len(ids) for ids in prompts)
    # Padding is masked, so any token serves.
    input_ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = 1
    generated = model.generate(  # type: ignore[operator]
        input_ids=input_ids.to(input_device(model)),
        attention_mask=mask.to(input_device(model)),
        generation_config=_greedy(model, tokenizer, max_new_tokens),
    )
    return tokenizer.batch_decode(generated[:, width:], skip_special_tokens=True)


def _greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> GenerationConfig:
    """What is not said here, transformers takes from the model's own generation config."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    # Rows that have ended are filled up with a token that decoding leaves out.
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if isinstance(ends, list) else ends
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_length=0,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=ends,
        pad_token_id=pad,
        use_cache=True,
    )

"""The logit that a model gives to each token of a text, without the logits of the text."""

import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lrk.hf.logit_scale import label_logprobs


@torch.no_grad()
def token_logits(
    model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    """Logit of each observed token given those before it: S(x_t | x_<t) of LongRecipe, 3.1.

    It is the raw output of the LM head, not a log-probability: where `lse` is the log-sum-exp over
    the vocabulary, S = lse - loss.

    Args:
        model: a causal language model whose logits are its last hidden states times its output
            embedding (`lrk.eval.losses.check_head`).
        input_ids: (S,) int64, one document.
        position_ids: (S,) int64; None for 0 .. S - 1. Skips need a model patched by `lrk.patch`.

    Returns:
        (S,) float32 on the CPU; NaN for the first token, which nothing predicts.
    """
    tokens = input_ids.to(model.device)
    placed = {} if position_ids is None else {"position_ids": position_ids.to(model.device)[None]}
    hidden = model.base_model(tokens[None], use_cache=False, **placed)[0][0, :-1]
    scores = label_logprobs(model, hidden, tokens[1:]).label_logit
    return torch.nn.functional.pad(scores.float(), (1, 0), value=math.nan).cpu()

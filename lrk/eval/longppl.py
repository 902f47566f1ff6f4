"""LongPPL: perplexity on the tokens that need long context (arXiv 2410.23771, ICLR 2025).

Over all tokens perplexity says little of long context, because most of them need none. A token is a
key token if an evaluating model is surer of it by more than 2 nats when it sees the whole text
(long-short difference, LSD), and then has a loss below 2 nats (long-context likelihood, LCL).
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lrk.eval.losses import token_losses

ALPHA = 2.0
BETA = 2.0
SHORT_CONTEXT = 4096
SHORT_STRIDE = 1024


def key_tokens(loss_short: Tensor, loss_long: Tensor) -> Tensor:
    """Which tokens are key.

    Args:
        loss_short: (S,) nats, given a short context; NaN where there is none.
        loss_long: (S,) nats, given everything before.

    Returns:
        (S,) bool: `loss_short - loss_long > 2` and `loss_long < 2`.
    """
    return (loss_short - loss_long > ALPHA) & (loss_long < BETA)


def find_key_tokens(
    model: PreTrainedModel,
    input_ids: Tensor,
    loss_long: Tensor | None = None,
    short_context: int = SHORT_CONTEXT,
    short_stride: int = SHORT_STRIDE,
) -> Tensor:
    """The key tokens of a text, by an evaluating model.

    As in the authors' code, short contexts begin every `short_stride` tokens, so that a token sees
    from `short_context` to `short_context + short_stride - 1` tokens. The first `short_context`
    tokens are never key: for them there is no difference.

    Args:
        model: the evaluating model.
        input_ids: (S,) int64.
        loss_long: (S,) of the same model, where it is at hand already.
        short_context, short_stride: in tokens.

    Returns:
        (S,) bool.
    """
    if loss_long is None:
        loss_long = token_losses(model, input_ids)
    window = short_context + short_stride
    loss_short = token_losses(model, input_ids, window, short_stride)
    key = key_tokens(loss_short, loss_long)
    # In the first window both losses have seen the same; they differ by rounding only.
    return key & (torch.arange(len(key)) >= min(window, len(key)))

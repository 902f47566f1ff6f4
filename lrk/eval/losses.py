"""The loss of every token of a text, in windows, without the logits of the text.

Hidden states go to `token_logprobs`, so memory does not grow with the vocabulary times the length.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lrk.device_map import input_device
from lrk.hf.logit_scale import label_logprobs

# Tokens on which `check_head` compares.
_CHECKED_TOKENS = 16


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """`(start, first, stop)`: tokens `first .. stop - 1` are scored given those from `start` on.

    The first window scores all its tokens but the first; every later one begins `stride` tokens
    further on and scores only those that no window before it has scored, so none counts twice.

    Args:
        length: tokens of the text.
        window: tokens of a window.
        stride: tokens from the start of a window to the start of the next.

    Raises:
        ValueError: unless 1 <= stride < window; with a stride of a window and more, the first
            token of a window would have no context.
    """
    if not 1 <= stride < window:
        raise ValueError(f"stride is {stride}; it must be at least 1 and less than window {window}")
    start, first = 0, 1
    while first < length:
        stop = min(start + window, length)
        yield start, first, stop
        start, first = start + stride, stop


@torch.no_grad()
def token_losses(
    model: PreTrainedModel, input_ids: Tensor, window: int | None = None, stride: int = 1
) -> Tensor:
    """The loss of each token given the tokens before it in its window, in nats.

    Args:
        model: a causal language model of transformers, patched or not. What is padding or packed
            is not its business here: the text is one document.
        input_ids: (S,) int64.
        window: tokens that the model sees at most; None for the whole text at once.
        stride: see `windows`.

    Returns:
        (S,) float32 on the CPU; the first token has no context, so its loss is NaN.

    Raises:
        ValueError: for a text of less than 2 tokens, a stride that does not fit the window, or a
            model whose logits are not its last hidden states times its output embedding, or whose
            losses are not all finite.
    """
    length = len(input_ids)
    if length < 2:
        raise ValueError(f"input_ids has {length} tokens; at least 2 are needed")
    if window is None:
        window, stride = length, 1
    losses = torch.full((length,), math.nan)
    for start, first, stop in windows(length, window, stride):
        tokens = input_ids[start:stop].to(input_device(model))
        hidden = model.base_model(tokens[None], use_cache=False)[0][0]
        scores = label_logprobs(
            model, hidden[first - 1 - start : stop - 1 - start], tokens[first - start :]
        )
        losses[first:stop] = -scores.logprob.cpu()
    wrong = (~losses[1:].isfinite()).nonzero()
    if len(wrong):
        raise ValueError(
            f"model is a {type(model).__name__} whose loss is not finite at {len(wrong):,} of "
            f"{length:,} tokens, first at position {int(wrong[0]) + 1:,}, which no mean can hold"
        )
    return losses


@torch.no_grad()
def check_head(model: PreTrainedModel, input_ids: Tensor) -> None:
    """Raise `ValueError` unless the logits are the hidden states times the output embedding.

    Some models scale their logits. Better no figure than one that is wrong by that factor. A
    difference of 2 per cent is left to the rounding of 16-bit logits.
    """
    if model.get_output_embeddings() is None:
        raise ValueError(f"model is a {type(model).__name__}, which has no output embedding")
    tokens = input_ids[:_CHECKED_TOKENS].to(input_device(model))
    logits = model(tokens[None], use_cache=False).logits[0, :-1].float()
    stock = logits.log_softmax(-1).gather(-1, tokens[1:, None].to(logits.device))[:, 0]
    hidden = model.base_model(tokens[None], use_cache=False)[0][0]
    ours = label_logprobs(model, hidden[:-1], tokens[1:]).logprob.to(stock.device)
    if (ours - stock).abs().max() > 0.02 * logits.abs().max() + 1e-3:
        raise ValueError(
            f"model is a {type(model).__name__}, whose logits are not its last hidden states times "
            "its output embedding; losses cannot be computed without them"
        )


@dataclass(frozen=True)
class Mean:
    """Mean loss of some tokens of all the texts together.

    Attributes:
        loss: nats a token; None if there is no token.
        tokens: how many.
    """

    loss: float | None
    tokens: int

    @property
    def perplexity(self) -> float | None:
        """exp of the loss."""
        return None if self.loss is None else math.exp(self.loss)


def mean_loss(losses: Sequence[Tensor], chosen: Sequence[Tensor] | None = None) -> Mean:
    """Over all tokens that have a loss.

    Args:
        losses: (S,) of each text, from `token_losses`.
        chosen: (S,) bool of each text: which tokens count. None for all.
    """
    kept = [loss[~loss.isnan()] for loss in losses]
    if chosen is not None:
        pairs = zip(losses, chosen, strict=True)
        kept = [loss[mask & ~loss.isnan()] for loss, mask in pairs]
    values = torch.cat(kept).double()
    return Mean(values.mean().item() if len(values) else None, len(values))


def loss_by_position(losses: Sequence[Tensor], bins: int) -> list[tuple[int, int, Mean]]:
    """Mean loss of the tokens at positions `start .. stop - 1`, over texts of equal length.

    Args:
        losses: (S,) of each text, each read as a whole.
        bins: how many intervals of (almost) equal width; fewer where there are fewer tokens.
    """
    length = len(losses[0])
    edges = torch.linspace(0, length, min(bins, length - 1) + 1).round().long().tolist()
    return [
        (start, stop, mean_loss([loss[start:stop] for loss in losses]))
        for start, stop in pairwise(edges)
    ]

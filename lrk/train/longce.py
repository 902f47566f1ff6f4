"""LongCE: tokens weigh more where long context helps to predict them (arXiv 2410.23771, section 4).

The weight of token i is min(exp(loss_short - loss_long), max_weight): how many times as probable
the whole context makes the token, beside a short one. Both losses are of the model that is trained,
at this step; the weight has no gradient.

A short context holds what is at most `short_context` to `short_context + short_stride - 1`
**positions** back. Contexts begin every `short_stride` positions, as in the authors' code, where
positions are indices. Where positions skip, what is short is counted in positions too: 4,096 of
them at 30 % hold some 1,229 tokens, because that is what stands for the last 4,096 tokens of a
text of full length.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lrk.recipe.collate import IGNORE_INDEX
from lrk.train.interruption import largest


class ShortContext(NamedTuple):
    """Tokens `start .. stop - 1` of a flattened batch are read, those from `first` on scored."""

    start: int
    first: int
    stop: int


# One token, for a process that has nothing to compute.
_IDLE = ShortContext(start=0, first=1, stop=1)


def short_contexts(
    position_ids: Tensor, cu_seq_lens: Tensor, short_context: int, short_stride: int
) -> Iterator[ShortContext]:
    """The contexts of every token that has more than a short one.

    Args:
        position_ids: (T,) int64 on the CPU, increasing within each document.
        cu_seq_lens: (N + 1,) boundaries of the documents, on the CPU.
        short_context, short_stride: in positions.

    Tokens at positions below `short_context + short_stride` of their document have no shorter
    context; a token without any token in its short context has no short loss.
    """
    for begin, end in pairwise(cu_seq_lens.tolist()):
        document = position_ids[begin:end] - position_ids[begin]
        far = document[document >= short_context + short_stride]
        opens = ((far - short_context) // short_stride).unique() * short_stride
        edges = torch.stack([opens, opens + short_context, opens + short_context + short_stride])
        for start, first, stop in torch.searchsorted(document, edges).t().tolist():
            first = max(first, start + 1)
            if first < stop:
                yield ShortContext(begin + start, begin + first, begin + stop)


@torch.no_grad()
def short_losses(
    model: nn.Module,
    batch: Mapping[str, Any],
    short_context: int,
    short_stride: int,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Loss of each label given its short context alone.

    Contexts are packed as documents, about as many tokens at a time as the batch has, with the
    positions that the tokens have in the batch.

    All processes of a run call the model as often, also those with fewer contexts: in each call it
    may gather its weights from all.

    Args:
        model: a patched causal language model, which may have adapters or be sharded.
        batch: `lrk.recipe.Batch`, and `attention_temperature` where the run has one.
        short_context, short_stride: in positions.
        group: processes that have the same batch, and compute each some of its contexts.

    Returns:
        (B, S) float32 in the places of the labels; NaN where there is no shorter context.
    """
    labels = batch["labels"].flatten()
    input_ids, position_ids = batch["input_ids"].flatten(), batch["position_ids"].flatten()
    contexts = short_contexts(
        position_ids.cpu(), batch["cu_seq_lens_q"].cpu(), short_context, short_stride
    )
    rank, size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    packs = list(_packs(contexts, len(labels) // size))[rank::size]
    packs += [[_IDLE]] * (largest(len(packs), labels.device) - len(packs))
    # Attention as in the loss itself, else the two could not be compared.
    temperature = batch.get("attention_temperature", 1.0)
    # Of each label its loss and whether it has one, so that those of several processes add up.
    found = torch.zeros(2, len(labels), device=labels.device)
    for pack in packs:
        ranges = [torch.arange(item.start, item.stop) for item in pack]
        tokens = torch.cat(ranges).to(labels.device)
        scored = torch.cat(
            [part >= item.first for part, item in zip(ranges, pack, strict=True)]
        ).to(labels.device)
        predicted = labels[tokens].where(scored, IGNORE_INDEX)
        losses = _losses(
            model,
            input_ids=input_ids[tokens][None],
            position_ids=position_ids[tokens][None],
            labels=predicted[None],
            attention_temperature=temperature,
            **_documents([len(part) for part in ranges], labels.device),
        )[0]
        kept = predicted != IGNORE_INDEX
        found[0, tokens[kept]] = losses[kept].float()
        found[1, tokens[kept]] = 1
    if group is not None:
        dist.all_reduce(found, group=group)
    return found[0].where(found[1] > 0, torch.nan).view_as(batch["labels"])


def _losses(model: nn.Module, **arguments: Any) -> Tensor:
    """(B, S) of each label, 0 where there is none; called whole, so that its hooks run."""
    found: list[Tensor] = []

    def weight(losses: Tensor) -> Tensor:
        found.append(losses)
        return torch.ones_like(losses)

    model(
        **arguments, token_weight=weight, num_items_in_batch=1, use_cache=False, output_logits=False
    )
    return found[0]


def longce_weight(loss_short: Tensor, max_weight: float) -> Callable[[Tensor], Tensor]:
    """The function from the losses given all context to the weights; 1 where there is no other."""

    def weight(loss_long: Tensor) -> Tensor:
        ratio = (loss_short - loss_long.float()).exp().clamp(max=max_weight)
        return ratio.where(~loss_short.isnan(), 1.0)

    return weight


def _packs(contexts: Iterator[ShortContext], tokens: int) -> Iterator[Sequence[ShortContext]]:
    """Contexts that are computed together: at least one, else at most so many tokens."""
    pack: list[ShortContext] = []
    size = 0
    for item in contexts:
        if pack and size + item.stop - item.start > tokens:
            yield pack
            pack, size = [], 0
        pack.append(item)
        size += item.stop - item.start
    if pack:
        yield pack


def _documents(lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Boundaries of packed documents, as a patched model takes them."""
    ends = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }

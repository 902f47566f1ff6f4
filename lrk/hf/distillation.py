"""A teacher's next-token distributions beside the labels, without the logits of either.

With a student's distribution q and a teacher's p for each of N tokens that have labels, and for the
M tokens of a mask (the same N if there is none), the loss is

    1 / N (sum_i -log q_i(label_i) + weight sum_j KL(p_j || q_j)),

which is the loss of Hinton et al. (arXiv 1503.02531, section 2) at temperature 1. Both sums are
computed inside one call of the head, from hidden states, see `lrk.hf.head`. The teacher may be the
model itself on another view of the same tokens: then its head is the student's, without gradient.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lrk.hf.head import Head, cross_entropy_of, head_of, with_head
from lrk.hf.logit_scale import LogitScale, logit_scale
from lrk.hf.mixed import stock_class
from lrk.kernels.cross_entropy import linear_kl

NONE, VIEWS, ORIGINAL = TEACHERS = ("none", "views", "original")
"""Who teaches, in training and in plans of it: see `lrk.train.distillation`."""

_IGNORE_INDEX = -100


class TeacherHead(NamedTuple):
    """The output embedding of a teacher: its logits are `scale` of `hidden @ weight.T + bias`."""

    weight: Tensor
    """(V, Ht)."""
    bias: Tensor | None
    """(V,)."""
    scale: LogitScale

    @staticmethod
    def of(teacher: PreTrainedModel) -> "TeacherHead":
        """Of a causal language model of transformers, patched or not, whose weights are whole.

        Raises:
            ValueError: for an output embedding that is no `torch.nn.Linear`, such as one with LoRA.
        """
        head: Any = teacher.get_output_embeddings()
        if stock_class(type(head)) is not nn.Linear:
            kind = stock_class(type(head))
            raise ValueError(
                f"the teacher's lm_head is a {kind.__module__}.{kind.__qualname__}; it must be a "
                "torch.nn.Linear, without adapters"
            )
        bias = None if head.bias is None else head.bias.detach()
        return TeacherHead(head.weight.detach(), bias, logit_scale(teacher))


class Distillation(NamedTuple):
    """What a patched model's forward takes as `distillation`, beside `labels`.

    It is a tuple, so that whoever moves or casts the arguments of a forward pass finds its tensors.
    """

    hidden: Tensor
    """(B, T, Ht) floating point: the teacher's last hidden states of the last T tokens of each row,
    which may be all S. They are used without gradient."""
    weight: float
    """Of the divergence beside the cross-entropy; 0 computes none."""
    mask: Tensor | None = None
    """(B, T) bool in the places of `hidden`: tokens whose next-token distributions are compared.
    None: those whose next token is a label."""
    head: TeacherHead | None = None
    """Of another model; None: the student's own head, without gradient and without dropout."""


@torch.no_grad()
def last_hidden(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """(B, S, H), what a patched model makes of a batch without dropout, and without its logits."""
    trains = model.training
    model.eval()
    try:
        found = model(**batch, use_cache=False, output_last_hidden=True)
    finally:
        model.train(trains)
    hidden: Tensor = found.last_hidden_state
    return hidden


def short_context(length: int, window: int) -> int:
    """Tokens of the short context that a sample of `length` tokens gives, unless it is said
    otherwise: a quarter of them, at most the teacher's window."""
    return max(min(length // 4, window), 1)


def check_distillation(
    distillation: Distillation,
    labels: Tensor | None,
    shape: tuple[int, ...],
    config: PretrainedConfig,
) -> None:
    """Refuse, before the model runs, what does not fit its tokens.

    Args:
        labels: of the forward pass.
        shape: (B, S) of its tokens.
        config: of the student.

    Raises:
        ValueError: in one sentence.
    """
    hidden, weight, mask, head = distillation
    rows, tokens = shape
    if labels is None:
        raise ValueError("distillation is given without labels, beside whose loss it would stand")
    if not 0 <= weight < math.inf:
        raise ValueError(f"distillation.weight is {weight}; it must be 0 or positive, and finite")
    size = config.hidden_size if head is None else head.weight.shape[-1]
    found = tuple(hidden.shape)
    if len(found) != 3 or found[::2] != (rows, size) or not 1 <= found[1] <= tokens:
        whose = "the model's" if head is None else "the teacher's"
        raise ValueError(
            f"distillation.hidden has shape {found}; it must be {(rows, tokens, size)}, the tokens "
            f"of this forward pass and {whose} hidden size, or of the last tokens alone"
        )
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != found[:2]):
        raise ValueError(
            f"distillation.mask is {mask.dtype} of shape {tuple(mask.shape)}; it must be "
            f"torch.bool of shape {found[:2]}, as hidden"
        )
    if head is not None and head.weight.shape[0] != config.vocab_size:
        raise ValueError(
            f"distillation.head has a vocabulary of {head.weight.shape[0]}, the model one of "
            f"{config.vocab_size}; teacher and student must share theirs"
        )


def distilled_cross_entropy(
    lm_head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    scale: LogitScale,
    distillation: Distillation,
    kept: Tensor,
    items: float | Tensor,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """`head_cross_entropy`, and the divergence from a teacher, both in one call of the head.

    Args:
        lm_head, hidden, labels, scale: as for `lrk.hf.head.head_cross_entropy`.
        kept: (B, S) bool: the tokens that are compared if `distillation` has no mask.
        items: what the sum of the divergences is divided by.
        options: of `linear_cross_entropy`.

    Returns:
        The cross-entropy as `options` have it; and the divergence, float32 0-dim, not yet
        multiplied by its weight.

    Raises:
        ValueError: for a head that processes share by rows.
    """
    last = distillation.hidden.shape[1]
    compared = kept[:, -last:] if distillation.mask is None else distillation.mask

    def both(head: Head) -> tuple[Tensor, Tensor]:
        loss = cross_entropy_of(head, labels, scale, **options)
        teacher = _teacher(lm_head, head, scale, distillation)
        return loss, _divergence(head, scale, teacher, compared, items)

    return with_head(lm_head, hidden, both)


def _teacher(
    lm_head: nn.Module, head: Head, scale: LogitScale, distillation: Distillation
) -> tuple[Tensor, TeacherHead]:
    """What the teacher's logits are made of; called inside the head's call, where its weight is."""
    hidden = distillation.hidden.detach().to(head.hidden.device)
    if distillation.head is not None:
        return hidden, distillation.head
    with torch.no_grad():
        # Of the factors those of the tokens alone: the weight is the student's.
        factors = head_of(lm_head, hidden.to(head.hidden.dtype), drops=False)
    return factors.hidden, TeacherHead(head.weight, head.bias, scale)


def _divergence(
    head: Head,
    scale: LogitScale,
    teacher: tuple[Tensor, TeacherHead],
    compared: Tensor,
    items: float | Tensor,
) -> Tensor:
    if head.rows is not None:
        raise ValueError(
            "distillation is given, but the model's lm_head is divided among processes by rows "
            "(tp_plan): each would compare a part of the distributions; leave lm_head whole"
        )
    hidden, (weight, bias, teacher_scale) = teacher
    places = torch.zeros_like(compared, dtype=torch.int64).masked_fill(~compared, _IGNORE_INDEX)
    return linear_kl(
        scale.divided(head.hidden[:, -hidden.shape[1] :]),
        head.weight,
        teacher_scale.divided(hidden),
        weight,
        labels=places.to(head.hidden.device),
        bias=None if head.bias is None else scale.divided(head.bias),
        teacher_bias=None if bias is None else teacher_scale.divided(bias),
        ignore_index=_IGNORE_INDEX,
        softcap=scale.softcap,
        teacher_softcap=teacher_scale.softcap,
        num_items=items,
    )

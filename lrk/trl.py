"""TRL's trainers on a patched model, with lrk's loss and lrk's log-probabilities.

TRL gives the model of a trainer a head of its own: `model(..., fused_lm_head=True)` runs the layers
of the model, which are lrk's if it is patched, and scores labels by TRL's kernel, with no logits in
memory. So nothing of this module is needed to train. It puts lrk's kernels in the place of TRL's.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers
import trl
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from lrk.hf.causal_lm import LrkForCausalLM
from lrk.hf.head import Head, with_head
from lrk.hf.logit_scale import LogitScale, logit_scale
from lrk.kernels.cross_entropy import token_logprobs

_IGNORED = -100
_TILE_TOKENS = 1024


class SFTTrainer(trl.SFTTrainer):
    """`trl.SFTTrainer` with the loss of the patched model.

    Its gradients are formed with the loss, so that the head costs three matrix products in place of
    four. TRL's metrics `entropy`, `mean_token_accuracy` and `num_tokens`, which come from its own
    head, are not logged. The balance of experts is weighed as `transformers.Trainer` does it.

    Raises:
        ValueError: for a model whose loss is not patched, and a `loss_type` other than "nll".
    """

    def __init__(self, model: Any, args: Any = None, *others: Any, **kwargs: Any) -> None:
        if not isinstance(model, str):
            _check_patched(model)
        loss_type = getattr(args, "loss_type", "nll")
        if loss_type != "nll":
            raise ValueError(
                f"loss_type is {loss_type!r}; lrk's loss is 'nll': use it, or trl.SFTTrainer"
            )
        super().__init__(model, args, *others, **kwargs)
        _check_patched(self.model)  # which TRL has loaded, if it was a name

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As `transformers.Trainer` does; logits are formed where outputs are asked for."""
        inputs = inputs | {"use_cache": False, "output_logits": return_outputs}
        return transformers.Trainer.compute_loss(
            self, model, inputs, return_outputs, num_items_in_batch
        )


def use_lrk_logprobs(trainer: Any) -> None:
    """Let `token_logprobs` answer where a trainer of TRL asks its model for log-probabilities.

    DPO and KTO also log mean logits and accuracy, which cost them one more matrix product, without
    gradients. A reference model that is not patched, as TRL loads them, keeps TRL's head.

    Args:
        trainer: a `DPOTrainer`, `KTOTrainer`, `GRPOTrainer` or `RLOOTrainer` of a patched model.

    Raises:
        ValueError: for an `SFTTrainer`, for a model whose loss is not patched, and for
            `cast_lm_head_to_fp32`.
    """
    if isinstance(trainer, trl.SFTTrainer):
        raise ValueError(
            f"trainer is a {type(trainer).__name__}, which asks for no log-probabilities: "
            "lrk.trl.SFTTrainer has lrk's loss"
        )
    if getattr(trainer.args, "cast_lm_head_to_fp32", False):
        raise ValueError(
            "cast_lm_head_to_fp32 is true; lrk's log-probabilities take the head in the dtype it "
            "has: leave it out, logits are float32 without it"
        )
    _check_patched(trainer.model)
    logs_logits = isinstance(trainer, trl.DPOTrainer | trl.KTOTrainer)
    temperature = getattr(trainer, "temperature", 1.0)
    _answer(trainer.model, temperature, logs_logits)
    reference = getattr(trainer, "ref_model", None)
    if reference is not None and isinstance(_causal_lm(reference), LrkForCausalLM):
        _answer(reference, temperature, False)


def _causal_lm(model: Any) -> Any:
    """The model inside of peft's, or the model."""
    return getattr(model, "get_base_model", lambda: model)()


def _check_patched(model: Any) -> None:
    if not isinstance(_causal_lm(model), LrkForCausalLM):
        raise ValueError(
            f"model is a {type(model).__name__} whose loss is not lrk's: call lrk.patch(model) "
            "before the trainer is made"
        )


def _answer(model: Any, temperature: float, logs_logits: bool) -> None:
    """Put our forward around that which TRL has put around the model's."""
    model = _causal_lm(model)
    trl_forward: Callable[..., Any] = model.forward
    scale = _at(temperature, logit_scale(model))

    @functools.wraps(trl_forward)  # `generate` looks at the signature
    def forward(
        *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any
    ) -> Any:
        if not fused_lm_head:
            return trl_forward(*args, labels=labels, **kwargs)
        assert labels is not None
        made = trl_forward(*args, output_last_hidden=True, **kwargs)
        following = labels[:, 1:]
        return FusedCausalLMOutput(
            **with_head(
                model.lm_head,
                made.last_hidden_state[:, :-1],
                lambda head: _scored(head, following.to(head.hidden.device), scale, logs_logits),
            ),
            label_mask=following != _IGNORED,
            aux_loss=getattr(made, "aux_loss", None),
        )

    model.forward = forward


def _at(temperature: float, scale: LogitScale) -> LogitScale:
    """Logits `c tanh(x / (d c))`, divided by a temperature."""
    softcap = None if scale.softcap is None else scale.softcap / temperature
    return LogitScale((scale.divisor or 1.0) * temperature, softcap)


def _scored(head: Head, labels: Tensor, scale: LogitScale, logs_logits: bool) -> dict[str, Any]:
    """What `FusedCausalLMOutput` has of each label, (B, S - 1), 0 at those that are ignored."""
    if head.rows is not None:
        raise ValueError(
            "lm_head is divided among processes (tp_plan), and token_logprobs takes a whole one: "
            "leave use_lrk_logprobs out"
        )
    scores = token_logprobs(
        scale.divided(head.hidden),
        head.weight,
        labels,
        bias=None if head.bias is None else scale.divided(head.bias),
        softcap=scale.softcap,
        entropy=True,
    )
    of_logits = _of_logits(head, labels, scale) if logs_logits else {}
    return {"log_probs": scores.logprob, "entropy": scores.entropy, **of_logits}


@torch.no_grad()
def _of_logits(head: Head, labels: Tensor, scale: LogitScale) -> dict[str, Tensor]:
    """What trainers log of the logits themselves, a tile of tokens at a time."""
    kept = labels != _IGNORED
    tiles = (x[kept].split(_TILE_TOKENS) for x in (head.hidden, labels))
    columns = []
    for hidden, label in zip(*tiles, strict=True):
        logits = scale.logits(torch.nn.functional.linear(hidden, head.weight, head.bias)).float()
        square = (2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1)
        columns.append((logits.mean(-1), logits.argmax(-1) == label, square))
    names = ("mean_logits", "is_top1", "log_sum_sq_probs")
    return {
        name: torch.zeros(kept.shape, dtype=parts[0].dtype, device=kept.device).masked_scatter(
            kept, torch.cat(parts)
        )
        for name, parts in zip(names, zip(*columns, strict=True), strict=True)
    }

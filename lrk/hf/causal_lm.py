"""The loss of a transformers causal language model without its logits in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import Cache, PretrainedConfig
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeCausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from lrk.hf.cache_name import cache_of, either_cache_name, named_cache
from lrk.hf.distillation import Distillation, check_distillation, distilled_cross_entropy
from lrk.hf.head import head_cross_entropy
from lrk.hf.logit_scale import DIVISOR, SOFTCAP, logit_scale_of
from lrk.hf.sequence_split import SequenceSplit
from lrk.hf.shifted_labels import to_label, to_predictor
from lrk.hf.signatures import check_signature
from lrk.hf.stock_forward import check_names, global_of, names_read
from lrk.kernels.cross_entropy.reduction import reduce_tokens

# A weight for each label, or a function from the losses of the labels to weights.
TokenWeight = Tensor | Callable[[Tensor], Tensor]


_BALANCE, _SLICE = "load_balancing_loss_func", "slice_logits_to_keep"

# All that the forward of a causal language model may read.
_KNOWN = (
    *("model", "last_hidden_state", "lm_head", "loss_function", "config", "vocab_size"),
    *(_SLICE, "isinstance", "int", "slice"),
    *("cache", "past_key_values", "hidden_states", "attentions", "CausalLMOutputWithPast"),
    *(SOFTCAP, "torch", "tanh", DIVISOR),
    *("output_router_logits", _BALANCE, "router_logits", "num_experts", "num_experts_per_tok"),
    *("router_aux_loss_coef", "to", "device", "MoeCausalLMOutputWithPast"),
)


@dataclass
class LossWithoutLogits(CausalLMOutputWithPast):
    """An output that has None in the place of its logits, also where it is read as a tuple.

    Attributes:
        divergence: float32 0-dim without gradient, that from the teacher of `distillation`, which
            `loss` has its weight times.
        last_hidden_state: (B, S, H), if it was asked for.
    """

    divergence: Tensor | None = None
    last_hidden_state: Tensor | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return _with_none_for_logits(self)


@dataclass
class MoeLossWithoutLogits(MoeCausalLMOutputWithPast):
    """`LossWithoutLogits` of a model with experts."""

    divergence: Tensor | None = None
    last_hidden_state: Tensor | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return _with_none_for_logits(self)


def _with_none_for_logits(output: Any) -> tuple[Any, ...]:
    names = output.__dataclass_fields__
    return tuple(output.get(name) for name in names if name in output or name == "logits")


class LrkForCausalLM:
    """Mixed in before a stock causal language model, which has these attributes."""

    config: PretrainedConfig
    model: nn.Module
    lm_head: nn.Module
    training: bool
    loss_function: Callable[..., Tensor]

    _lrk_slice: ClassVar[tuple[Callable[[Tensor, Any], Tensor], ...]]
    """How the stock forward takes `logits_to_keep`, if by a function."""
    _lrk_names: ClassVar[frozenset[str]]
    """What the stock forward reads."""
    _lrk_balance: ClassVar[tuple[Callable[..., Any], ...]]
    """The loss that balances experts, if the model has any."""

    @classmethod
    def over(cls, stock: type[Any]) -> dict[str, Any]:
        """What the stock forward does with logits; see `lrk.hf.mixed.mixed`."""
        check_signature(stock, cls)
        check_names(stock, _KNOWN)
        names = names_read(stock)
        return {
            "_lrk_names": frozenset(names),
            "_lrk_slice": (global_of(stock, _SLICE),) if _SLICE in names else (),
            "_lrk_balance": (global_of(stock, _BALANCE),) if _BALANCE in names else (),
        }

    @either_cache_name
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | slice | Tensor = 0,
        *,
        output_logits: bool | None = None,
        output_router_logits: bool | None = None,
        token_weight: TokenWeight | None = None,
        distillation: Distillation | None = None,
        output_last_hidden: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | MoeCausalLMOutputWithPast:
        """As the stock forward, but in training with `labels` the output's `logits` are None.

        Args:
            output_logits: whether to form the logits where `labels` are given; default in
                evaluation mode, whose callers may compute metrics from them, and not in training.
            output_router_logits: of models with experts, whose loss then also balances them.
            token_weight: (B, S) weight of each label's loss, in the places of `labels` (of
                `shift_labels` where they are given); or a function that makes it of the losses,
                (B, S), given without gradients and 0 where ignored. The mean divides by
                `num_items_in_batch`, without it by the sum of the weights.
            distillation: a teacher, whose divergence is added to the loss (`lrk.hf.distillation`),
                divided by `num_items_in_batch`, without it by the number of labels. Weights of
                tokens are of the cross-entropy alone.
            output_last_hidden: give `last_hidden_state` of all tokens, as a teacher's are wanted;
                without `labels`, and no logits are formed.
            kwargs: as in transformers; of the loss's own, `shift_labels`, `num_items_in_batch` and
                `ignore_index` are honoured.

        Raises:
            ValueError: where the model's loss is not plain next-token cross-entropy, or
                `token_weight` is given without `labels`; for a `distillation` that does not fit,
                and for `output_last_hidden` with `labels` or `output_logits`.
        """
        if token_weight is not None and labels is None:
            raise ValueError("token_weight is given without labels, whose losses it would weigh")
        if output_last_hidden and not (labels is None and output_logits is None):
            raise ValueError(
                "output_last_hidden is true with labels or output_logits; it is for hidden states "
                "alone, so leave them out"
            )
        if distillation is not None:
            tokens = inputs_embeds if input_ids is None else input_ids
            assert tokens is not None
            check_distillation(distillation, labels, tokens.shape[:2], self.config)
        if self._lrk_balance and output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        if output_router_logits is not None:
            kwargs["output_router_logits"] = output_router_logits
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **named_cache(cache),
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        loss, divergence = (
            (None, None)
            if labels is None
            else self._fused_loss(hidden, labels, token_weight, distillation, **kwargs)
        )
        logits = None
        if output_logits is None:
            output_logits = not self.training
        if not output_last_hidden and (labels is None or output_logits):
            scale = logit_scale_of(self.config, self._lrk_names)
            logits = scale.logits(self.lm_head(self._kept(hidden, logits_to_keep)))
        made = {
            "loss": loss,
            "logits": logits,
            "hidden_states": outputs.hidden_states,
            "attentions": outputs.attentions,
            **named_cache(cache_of(outputs)),
        }
        is_stock = logits is not None and divergence is None
        if not is_stock:
            made["divergence"] = divergence
            made["last_hidden_state"] = hidden if output_last_hidden else None
        if not self._lrk_balance:
            return (CausalLMOutputWithPast if is_stock else LossWithoutLogits)(**made)
        split = kwargs.get("sequence_split")
        made |= self._balanced(loss, outputs.router_logits, attention_mask, split)
        return (MoeCausalLMOutputWithPast if is_stock else MoeLossWithoutLogits)(**made)

    def _kept(self, hidden: Tensor, logits_to_keep: int | slice | Tensor) -> Tensor:
        if self._lrk_slice:
            return self._lrk_slice[0](hidden, logits_to_keep)
        if isinstance(logits_to_keep, int):
            logits_to_keep = slice(-logits_to_keep, None)
        return hidden[:, logits_to_keep, :]

    def _balanced(
        self,
        loss: Tensor | None,
        router_logits: tuple[Tensor, ...] | None,
        attention_mask: Tensor | None,
        split: SequenceSplit | None,
    ) -> dict[str, Any]:
        """The loss with that of the experts' balance, as the stock forward forms it.

        The balance is that of all tokens, also where a process has some, and a part of the loss
        once.
        """
        model: Any = self
        auxiliary = None
        if router_logits:
            of_all = router_logits if split is None else split.gathered_rows(router_logits)
            auxiliary = self._lrk_balance[0](
                of_all, model.num_experts, model.num_experts_per_tok, attention_mask
            )
            if loss is not None:
                share = model.router_aux_loss_coef / (1 if split is None else split.size)
                loss = loss + share * auxiliary.to(loss.device)
        return {"loss": loss, "aux_loss": auxiliary, "router_logits": router_logits}

    def _fused_loss(
        self,
        hidden: Tensor,
        labels: Tensor,
        token_weight: TokenWeight | None,
        distillation: Distillation | None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Cross-entropy of token `i + 1` given the hidden state of token `i`, and the divergence
        from a teacher that it includes, weighed."""
        if self.loss_function is not ForCausalLMLoss:
            raise ValueError(
                f"the model's loss_function is {self.loss_function}; lrk fuses transformers' "
                "ForCausalLMLoss only: use lrk.patch(model, cross_entropy=False)"
            )
        shape: tuple[int, ...] = ()
        if isinstance(num_items_in_batch, Tensor) and num_items_in_batch.numel() == 1:
            # DataParallel adds dimensions of 1, by which it gathers the losses; stock keeps them.
            shape = num_items_in_batch.shape
            num_items_in_batch = num_items_in_batch.reshape(())
        shifts = shift_labels is None
        if shift_labels is None:
            shift_labels = to_predictor(labels, ignore_index)
        shift_labels = shift_labels.to(hidden.device)
        kept = shift_labels != ignore_index

        def loss_of(**options: Any) -> tuple[Tensor, Tensor | None]:
            given = (
                *(self.lm_head, hidden, shift_labels),
                logit_scale_of(self.config, self._lrk_names),
            )
            options["ignore_index"] = ignore_index
            if distillation is None or not distillation.weight:
                return head_cross_entropy(*given, **options), None
            items = kept.sum() if num_items_in_batch is None else num_items_in_batch
            return distilled_cross_entropy(*given, distillation, kept, items, **options)

        if token_weight is None or isinstance(token_weight, Tensor):
            if token_weight is not None and shifts:
                token_weight = to_predictor(token_weight, 0)
            loss, divergence = loss_of(token_weight=token_weight, num_items=num_items_in_batch)
        else:
            losses, divergence = loss_of(reduction="none")
            weights = (
                to_predictor(token_weight(to_label(losses.detach())), 0)
                if shifts
                else token_weight(losses.detach())
            )
            loss = reduce_tokens(losses, kept, "mean", weights, num_items_in_batch)
        if divergence is None:
            return _of_shape(loss, shape), None
        assert distillation is not None
        loss = loss + distillation.weight * divergence
        return _of_shape(loss, shape), divergence.detach()


def _of_shape(loss: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A loss in another shape; a view only where it must be.

    The trainer multiplies the loss in place, and autograd forgets hooks on a view that is changed
    so: FSDP2's, which brings the head's weight for the backward pass, would not run.
    """
    return loss if loss.shape == shape else loss.reshape(shape)

"""The loss of a transformers causal language model without its logits in memory."""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from transformers import Cache
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from lrk.kernels.cross_entropy import linear_cross_entropy


class LrkForCausalLM:
    """Mixed in before a stock causal language model, which has these attributes."""

    model: nn.Module
    lm_head: nn.Module
    loss_function: Callable[..., Tensor]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | slice | Tensor = 0,
        output_logits: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As the stock forward, but with `labels` the output's `logits` are None.

        Args:
            output_logits: form the logits also where `labels` are given.
            kwargs: as in transformers; of the loss's own, `shift_labels`, `num_items_in_batch` and
                `ignore_index` are honoured.

        Raises:
            ValueError: where the model's loss is not plain next-token cross-entropy.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        loss = None if labels is None else self._fused_loss(hidden, labels, **kwargs)
        logits = None
        if labels is None or output_logits:
            if isinstance(logits_to_keep, int):
                logits_to_keep = slice(-logits_to_keep, None)
            logits = self.lm_head(hidden[:, logits_to_keep, :])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _fused_loss(
        self,
        hidden: Tensor,
        labels: Tensor,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> Tensor:
        """Cross-entropy of token `i + 1` given the hidden state of token `i`."""
        if self.loss_function is not ForCausalLMLoss:
            raise ValueError(
                f"the model's loss_function is {self.loss_function}; lrk fuses transformers' "
                "ForCausalLMLoss only: use lrk.patch(model, cross_entropy=False)"
            )
        if type(self.lm_head) is not nn.Linear:
            kind = type(self.lm_head)
            raise ValueError(
                f"lm_head is a {kind.__module__}.{kind.__qualname__}; lrk's loss needs a "
                "torch.nn.Linear: leave lm_head out of the adapter or use "
                "lrk.patch(model, cross_entropy=False)"
            )
        if shift_labels is None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        loss = linear_cross_entropy(
            hidden,
            self.lm_head.weight,
            shift_labels.to(hidden.device),
            bias=self.lm_head.bias,
            ignore_index=ignore_index,
            num_items=num_items_in_batch,
        )
        return cast(Tensor, loss)

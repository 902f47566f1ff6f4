"""What a causal language model makes of the product of its head: Gemma caps it, Granite divides it.

A loss without logits must know. A model of transformers says so by the settings that its forward
reads.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lrk.device_map import weights_brought
from lrk.hf.mixed import stock_class
from lrk.hf.stock_forward import names_read
from lrk.kernels.cross_entropy import TokenLogprobs, token_logprobs

SOFTCAP, DIVISOR = "final_logit_softcapping", "logits_scaling"


class LogitScale(NamedTuple):
    """The logits are `c tanh(x / (d c))` of `x = hidden @ weight.T + bias`."""

    divisor: float | None
    """`d`; None is 1."""
    softcap: float | None
    """`c`; None is infinite."""

    def divided(self, x: Tensor) -> Tensor:
        """Of hidden states and bias, which is the same as of their product."""
        return x if self.divisor is None else x / self.divisor

    def logits(self, x: Tensor) -> Tensor:
        """As the stock forward forms them."""
        x = self.divided(x)
        return x if self.softcap is None else (x / self.softcap).tanh() * self.softcap


def logit_scale(model: Any) -> LogitScale:
    """Of a causal language model of transformers, patched or not, or of an adapter's around one."""
    model = getattr(model, "get_base_model", lambda: model)()
    names = getattr(model, "_lrk_names", None)
    return logit_scale_of(model.config, names or names_read(stock_class(type(model))))


def logit_scale_of(config: PretrainedConfig, names: Collection[str]) -> LogitScale:
    """Of a config, and the names that the forward reads."""
    divisor, softcap = (
        getattr(config, name) if name in names else None for name in (DIVISOR, SOFTCAP)
    )
    return LogitScale(divisor, softcap)


def label_logprobs(model: PreTrainedModel, hidden: Tensor, labels: Tensor) -> TokenLogprobs:
    """`token_logprobs` of a causal language model, without its logits.

    Args:
        hidden: (T, H) last hidden states. labels: (T,) what follows each.
    """
    head, scale = model.get_output_embeddings(), logit_scale(model)
    with weights_brought(head):
        bias = getattr(head, "bias", None)
        return token_logprobs(
            scale.divided(hidden.to(head.weight.device)),
            head.weight,
            labels.to(head.weight.device),
            bias=None if bias is None else scale.divided(bias),
            ignore_index=None,
            softcap=scale.softcap,
        )

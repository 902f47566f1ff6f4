"""Drop-in `torch.nn` modules over the operations."""

from typing import cast

from torch import Tensor, nn

from lrk.kernels.attention import attention
from lrk.kernels.cross_entropy import linear_cross_entropy, linear_kl
from lrk.kernels.rope import phase_increments, rope


class RotaryEmbedding(nn.Module):
    """Rotary position embedding (RoFormer, 2104.09864) at arbitrary positions.

    Args:
        inv_freq: (R/2,) frequencies in radians per position, float64 where they are known so, as
            from `lrk.frequencies.rope_frequencies(config).inv_freq`; R is at most the head dim.
        attention_scaling: factor of cosine and sine (YaRN, LongRoPE).
        interleaved: the partner of dimension 2j is 2j + 1 (GLM-4), not that of j is j + R/2.
    """

    increments: Tensor

    def __init__(
        self, inv_freq: Tensor, attention_scaling: float = 1.0, interleaved: bool = False
    ) -> None:
        super().__init__()
        # Integers: moved with the module, but untouched by `module.to(torch.bfloat16)`.
        self.register_buffer("increments", phase_increments(inv_freq), persistent=False)
        self.attention_scaling = attention_scaling
        self.interleaved = interleaved

    def forward(self, q: Tensor, k: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """q (B, H, S, D), k (B, Hk, S, D), position_ids (B or 1, S) or (S,): q and k rotated."""
        return rope(q, k, position_ids, self.increments, self.attention_scaling, self.interleaved)


class Attention(nn.Module):
    """Attention with explicit documents; the arguments are those of `lrk.kernels.attention`."""

    def __init__(
        self,
        causal: bool = True,
        window: int | None = None,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.window = window
        self.scale = scale
        self.softcap = softcap

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        window_position_ids: Tensor | None = None,
    ) -> Tensor:
        """q (B, H, Sq, D), k and v (B, Hk, Sk, D): output (B, H, Sq, D)."""
        output = attention(
            q,
            k,
            v,
            causal=self.causal,
            cu_seqlens=cu_seqlens,
            cu_seqlens_k=cu_seqlens_k,
            window=self.window,
            window_position_ids=window_position_ids,
            scale=self.scale,
            softcap=self.softcap,
        )
        return cast(Tensor, output)


class LinearCrossEntropyLoss(nn.Module):
    """Cross-entropy of a linear layer's output, without that output in memory.

    The arguments are those of `lrk.kernels.cross_entropy.linear_cross_entropy`.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.softcap = softcap

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None = None,
        token_weight: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """hidden (..., H), weight (V, H), labels (...); a scalar unless reduction is `"none"`."""
        loss = linear_cross_entropy(
            hidden,
            weight,
            labels,
            bias=bias,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            token_weight=token_weight,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            num_items=num_items,
        )
        return cast(Tensor, loss)


class LinearKLLoss(nn.Module):
    """Divergence of a student's output layer from a teacher's, without either's output in memory.

    The arguments are those of `lrk.kernels.cross_entropy.linear_kl`.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        reduction: str = "mean",
        temperature: float = 1.0,
        softcap: float | None = None,
        teacher_softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.temperature = temperature
        self.softcap = softcap
        self.teacher_softcap = teacher_softcap

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        labels: Tensor | None = None,
        bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        token_weight: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """hidden (..., H), weight (V, H), the teacher's (..., Ht) and (V, Ht), labels (...).

        A scalar unless reduction is `"none"`. Tokens with the label `ignore_index` do not count.
        """
        return linear_kl(
            hidden,
            weight,
            teacher_hidden,
            teacher_weight,
            labels,
            bias=bias,
            teacher_bias=teacher_bias,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            token_weight=token_weight,
            temperature=self.temperature,
            softcap=self.softcap,
            teacher_softcap=self.teacher_softcap,
            num_items=num_items,
        )

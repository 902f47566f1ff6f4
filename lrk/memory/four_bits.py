"""Frozen linear layers in 4 bits (QLoRA, 2305.14314), by bitsandbytes."""

import torch
from torch import nn
from transformers import BitsAndBytesConfig


def nf4(products: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with scales that are quantised too; embeddings, norms and `lm_head` stay as they are.

    Args:
        products: dtype that a matrix is written out in to be multiplied.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=products,
    )


def forbid_repacking(model: nn.Module) -> None:
    """Keep layers in 4 bits as they are when the model is evaluated on a CPU.

    Where the processor has AVX512-BF16, bitsandbytes (0.50) rewrites a layer's 4 bits at its first
    product without gradients, for a kernel in bfloat16 that has no backward. A model that trains on
    then passes no gradient through the layer and dequantises to noise, in silence; and widths that
    are no multiples of 32 by 64 raise an error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]

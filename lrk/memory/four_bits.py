"""Frozen linear layers in 4 bits (QLoRA, 2305.14314), by bitsandbytes."""

import torch
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

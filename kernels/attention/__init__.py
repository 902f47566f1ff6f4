"""Flash attention with explicit documents."""

from .merge import merge_attention
from .op import attention, attention_triton
from .reference import attention_reference

__all__ = ["attention", "attention_reference", "attention_triton", "merge_attention"]

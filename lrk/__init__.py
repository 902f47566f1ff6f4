"""Long-context Recipe Kernels: from an 8k to a 128k context window on one GPU.

Importing lrk registers the attention backend `"lrk"` with transformers.
"""

from lrk import positions
from lrk.hf import (
    AutoLrkModelForCausalLM,
    apply_lrk_to_llama,
    apply_lrk_to_mistral,
    apply_lrk_to_qwen2,
    patch,
    patched,
    revert_lrk,
    unpatch,
)

__version__ = "0.1.0"
__all__ = [
    "AutoLrkModelForCausalLM",
    "apply_lrk_to_llama",
    "apply_lrk_to_mistral",
    "apply_lrk_to_qwen2",
    "patch",
    "patched",
    "positions",
    "revert_lrk",
    "unpatch",
]

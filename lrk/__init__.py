"""Long-context Recipe Kernels: from an 8k to a 128k context window on one GPU.

Importing lrk registers the attention backend `"lrk"` with transformers.
"""

from lrk.versions import check_floors

check_floors()  # before what would fail, or worse, on an older PyTorch

from lrk import positions  # noqa: E402
from lrk.hf import (  # noqa: E402
    AutoLrkModelForCausalLM,
    apply_lrk_to,
    apply_lrk_to_llama,
    apply_lrk_to_mistral,
    apply_lrk_to_qwen2,
    patch,
    patched,
    revert_lrk,
    split_batch,
    unpatch,
)

__version__ = "0.1.0"
__all__ = [
    "AutoLrkModelForCausalLM",
    "apply_lrk_to",
    "apply_lrk_to_llama",
    "apply_lrk_to_mistral",
    "apply_lrk_to_qwen2",
    "patch",
    "patched",
    "positions",
    "revert_lrk",
    "split_batch",
    "unpatch",
]

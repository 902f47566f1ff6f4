"""lrk inside Hugging Face transformers."""

from lrk.hf.apply import (
    apply_lrk_to,
    apply_lrk_to_llama,
    apply_lrk_to_mistral,
    apply_lrk_to_qwen2,
    revert_lrk,
)
from lrk.hf.architectures import SUPPORTED
from lrk.hf.attention import BACKEND
from lrk.hf.auto import AutoLrkModelForCausalLM
from lrk.hf.patch import patch, patched, unpatch
from lrk.hf.sequence_split import split_batch

__all__ = [
    "BACKEND",
    "SUPPORTED",
    "AutoLrkModelForCausalLM",
    "apply_lrk_to",
    "apply_lrk_to_llama",
    "apply_lrk_to_mistral",
    "apply_lrk_to_qwen2",
    "patch",
    "patched",
    "revert_lrk",
    "split_batch",
    "unpatch",
]

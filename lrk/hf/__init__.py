"""lrk inside Hugging Face transformers."""

from lrk.hf.architectures import SUPPORTED
from lrk.hf.attention import BACKEND
from lrk.hf.patch import patch, patched, unpatch

__all__ = ["BACKEND", "SUPPORTED", "patch", "patched", "unpatch"]

"""Long-context Recipe Kernels: from an 8k to a 128k context window on one GPU.

Importing lrk registers the attention backend `"lrk"` with transformers.
"""

from lrk import positions
from lrk.hf import patch, patched, unpatch

__version__ = "0.1.0"
__all__ = ["patch", "patched", "positions", "unpatch"]

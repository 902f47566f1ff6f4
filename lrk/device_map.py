"""Models that transformers' `device_map` has spread over devices, host memory and disk.

accelerate's hooks bring the weights of a module to its device when it is called. What is done to
weights without a call must ask for them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go: to the input embedding, or where its weight is brought for a call."""
    embedding: Any = model.get_input_embeddings()
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return embedding.weight.device if device is None else torch.device(device)


@contextmanager
def weights_brought(module: nn.Module) -> Iterator[None]:
    """Have a module's own weights, not those of its children, on its device for the block."""
    if not getattr(getattr(module, "_hf_hook", None), "offload", False):
        yield
        return
    from accelerate.utils import align_module_device  # who has hooks has accelerate

    with align_module_device(module):
        yield

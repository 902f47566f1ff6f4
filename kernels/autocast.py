"""What autocast asks of an operation: it does not look into custom operations by itself."""

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes in on the device of `x`, None where it is off or unknown (`meta`)."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)

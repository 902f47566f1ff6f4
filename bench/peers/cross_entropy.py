"""Linear cross-entropy: hidden (N, W), weight (V, W) and labels (N,) to the mean loss."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.device import DEVICE
from bench.peers import Unavailable, need_gpu, need_package
from lrk.kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_triton

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def lrk() -> Loss:
    """Ours for the device."""
    return linear_cross_entropy


def lrk_triton(chunk_tokens: int | None = None) -> Loss:
    """Our kernels, on a CPU in Triton's interpreter."""
    return lambda hidden, weight, labels: linear_cross_entropy_triton(
        hidden, weight, labels, chunk_tokens=chunk_tokens
    )


def _eager(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), labels)


def eager() -> Loss:
    """As transformers' models: logits in the model's dtype, the loss from a float32 copy."""
    return _eager


def compiled() -> Loss:
    """`eager`, compiled."""
    return torch.compile(_eager, dynamic=False)


def torch_chunked() -> Loss:
    """`F.linear_cross_entropy`."""
    if not hasattr(F, "linear_cross_entropy"):
        raise Unavailable("PyTorch has a chunked loss from 2.13 on")
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda hidden, weight, labels: F.linear_cross_entropy(
        hidden, weight, labels, options=options
    )


def cut_cross_entropy() -> Loss:
    need_package("cut_cross_entropy", "cut-cross-entropy")
    from cut_cross_entropy import linear_cross_entropy as cut

    how = "cce" if DEVICE.type == "cuda" else "torch_compile"
    return lambda hidden, weight, labels: cut(hidden, weight, labels, impl=how)


def liger() -> Loss:
    """With its defaults."""
    need_gpu("Liger-Kernel")
    need_package("liger_kernel", "liger-kernel")
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda hidden, weight, labels: loss(weight, hidden, labels)

"""Weights of 4 bits (QLoRA, 2305.14314): bitsandbytes' own layers, in a model without memory.

They are built by transformers and trained by peft as in a real run, and bitsandbytes' operations
run on fake tensors. NF4 stores half a byte a weight, a scale of 8 bits for each 64 weights, and a
float32 for each 256 scales: 0.516 bytes a weight, and two tables of codes a matrix. Embeddings,
norms and `lm_head` stay as they are.

A product first writes its matrix out in the dtype that it computes in, so one whole matrix at a
time is temporary, forward and backward. Autograd keeps the 4 bits only.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers import AutoHfQuantizer
from transformers.utils.import_utils import BITSANDBYTES_MIN_VERSION, is_bitsandbytes_available

from lrk.memory.four_bits import nf4
from lrk.plan.ledger import TEMPORARY, Workspace
from lrk.versions import pip_install


def put_in_4_bits(model: nn.Module, stored: torch.dtype, computed: torch.dtype) -> None:
    """Let bitsandbytes' layers take the place of the linear ones, as `load_in_4bit` does.

    Args:
        model: of transformers, on the meta device.
        stored: dtype of the weights that are quantised.
        computed: dtype of the products.

    Raises:
        ValueError: if bitsandbytes is not installed.
    """
    if not is_bitsandbytes_available():
        raise ValueError(
            f"load_in_4bit is True, but bitsandbytes {BITSANDBYTES_MIN_VERSION} or newer is not "
            f"installed; `{pip_install('bitsandbytes')}`"
        )
    import bitsandbytes

    # It keeps its table of 8-bit codes for good: the first one must not be a fake.
    bitsandbytes.functional.quantize_blockwise(torch.ones(256), blocksize=256)
    quantizer = AutoHfQuantizer.from_config(nf4(computed))
    quantizer.preprocess_model(model, device_map=None)
    quantizer.postprocess_model(model)
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.weight.data = module.weight.data.to(stored)
            if module.bias is not None:  # the first forward pass would convert it
                module.bias.data = module.bias.data.to(computed)


def is_in_4_bits(parameter: Any) -> bool:
    """Whether a parameter is quantised, or is to be."""
    return hasattr(parameter, "quant_state")


def quantise(weight: Tensor, like: Any) -> nn.Parameter:
    """A frozen parameter of a weight (N, K), real or fake, in 4 bits; its scales come with it.

    Args:
        like: a `Params4bit` of bitsandbytes, which itself cannot be a fake.
    """
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(
        weight,
        blocksize=like.blocksize,
        compress_statistics=like.compress_statistics,
        quant_type=like.quant_type,
        quant_storage=like.quant_storage,
    )
    parameter: Any = nn.Parameter(packed, requires_grad=False)
    parameter.quant_state = state
    return parameter


def scales_of(model: nn.Module) -> Iterator[Tensor]:
    """What quantised weights have beside their 4 bits: scales, scales of scales, and codes."""
    for parameter in model.parameters():
        if is_in_4_bits(parameter):
            state: Any = parameter.quant_state  # type: ignore[attr-defined]
            yield from (state.absmax, state.code, state.offset, state.state2.absmax)
            yield state.state2.code


def product_workspace(x: Tensor, shape: Sequence[int], blocksize: int) -> Workspace:
    """Of a product with a weight of 4 bits: the matrix in the dtype of `x`, and its float32 scales.

    So do a CPU's products and a GPU's, for as many tokens as training has. (For a few, up to 1,536
    by GPU and shape, a fused kernel of the GPU's needs neither.)

    Args:
        shape: of the weight, (N, K).
    """
    elements = shape[0] * shape[1]
    return Workspace(TEMPORARY, elements * x.element_size() + 4 * -(-elements // blocksize))

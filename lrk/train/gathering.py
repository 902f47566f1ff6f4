"""The whole model of a run whose engine keeps it in parts: gathered from all processes.

FSDP2 and ZeRO-3 leave each process a part of every weight, and both train float32 copies of what
was loaded in 16 bits. What a run saves is the model that one process would have saved: whole
tensors in the dtype that they were loaded in, in a stock model on the CPU of the main process,
which needs that much memory there.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoModelForCausalLM, PreTrainedModel

from lrk.pretrained import made_whole
from lrk.train.engine import Engine


def gathered(
    model: nn.Module, dtypes: Mapping[str, torch.dtype], engine: Engine, is_main: bool
) -> PreTrainedModel | PeftModel | None:
    """A copy of a trained model with whole weights, adapters beside them; a collective.

    Args:
        model: as the engine keeps it, less the wrapper around it.
        dtypes: to save parameters in, by name.

    Returns:
        In the main process the model on the CPU, unpatched; None in the others.
    """
    parts = _of_deepspeed(model) if engine.is_deepspeed else _of_dtensors(model)
    weights = {name: tensor for name, tensor in parts if is_main}
    if not is_main:
        return None
    whole = _empty_copy(model)
    whole.load_state_dict(
        {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in weights.items()},
        assign=True,
    )
    # Embeddings that are trained beside adapters are tied no longer, whatever the config says.
    if _is_tied(_base(model)):
        _base(whole).tie_weights()
    return whole


def loaded_dtypes(model: nn.Module, engine: Engine) -> dict[str, torch.dtype]:
    """Of the parameters by name, before an engine has them.

    ZeRO-3 has them from the start, in 16 bits where it computes in 16 bits, whatever was asked for.
    """
    asked = _base(model).config.dtype if engine.is_deepspeed else None
    return {
        name: each.dtype if asked is None else torch.promote_types(each.dtype, asked)
        for name, each in model.named_parameters(remove_duplicate=False)
    }


def _of_dtensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    yield from weights.items()


def _of_deepspeed(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The float32 copies that the optimizer has of trained weights, and the others as they are."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        trained = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        with deepspeed.zero.GatheredParameters([parameter]):
            whole = parameter if trained is None else trained
            yield name, whole.detach().to("cpu", copy=True)
    persistent = model.state_dict().keys() - parameters.keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)


def _empty_copy(model: nn.Module) -> Any:
    """The stock model of the same config and adapters; its parameters have no values."""
    base = _base(model)
    with init_empty_weights(), made_whole():
        whole: Any = AutoModelForCausalLM.from_config(copy.deepcopy(base.config))
        whole.generation_config = copy.deepcopy(base.generation_config)
        if isinstance(model, PeftModel):
            whole = get_peft_model(whole, copy.deepcopy(model.peft_config["default"]))
    return whole


def _base(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _is_tied(model: PreTrainedModel) -> bool:
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    return embeddings.weight is head.weight

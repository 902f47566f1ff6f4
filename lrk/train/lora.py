"""LoRA adapters, by peft, on whole weights or on weights of 4 bits (QLoRA)."""

from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lrk.pretrained import meta_model
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.engine import FSDP2, engine_of


def check_adapters(config: PretrainedConfig, arguments: LrkTrainingArguments) -> None:
    """Raise `ValueError` if `add_lora` would. Loads no weights."""
    if arguments.lora_rank:
        with torch.device("meta"):
            add_lora(meta_model(config), arguments)


def add_lora(model: PreTrainedModel, arguments: LrkTrainingArguments) -> PeftModel:
    """Freeze the model and put trainable adapters of rank `lora_rank` on `lora_targets`.

    The adapters are float32 also where the model is bfloat16 or of 4 bits. Modules of
    `lora_modules_to_save` are trained whole, in the dtype of the model; embeddings that are tied to
    the head are so no longer. (Trained embeddings and norms are what LongLoRA, 2309.12307, 3.3,
    found adapters to need for long context.)

    Raises:
        ValueError: for a name that the model has not, and for adapters that cannot be merged.
    """
    for wanted in arguments.lora_modules_to_save:
        if not any(name.endswith(wanted) for name, _ in model.named_modules()):
            raise ValueError(
                f"lora_modules_to_save has {wanted!r}, with which no name of a module ends; "
                "embeddings, norms and head are embed_tokens, norm and lm_head"
            )
    config = LoraConfig(
        r=arguments.lora_rank,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=_targets(arguments.lora_targets),
        modules_to_save=arguments.lora_modules_to_save or None,
        task_type="CAUSAL_LM",
    )
    is_tied = model.config.tie_word_embeddings
    adapted = get_peft_model(model, config)
    if is_tied:
        _check_tied(model, arguments)
        if engine_of(arguments).name == FSDP2:
            _untie_originals(adapted)
    return adapted


def _untie_originals(model: PeftModel) -> None:
    """What is trained whole keeps its original beside it, tied to the head or the embeddings as it
    was: FSDP2 takes no weight twice."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for name, weight in list(module.original_module.named_parameters(recurse=False)):
                copied = nn.Parameter(weight.detach().clone(), requires_grad=False)
                module.original_module.register_parameter(name, copied)


def _check_tied(model: PreTrainedModel, arguments: LrkTrainingArguments) -> None:
    """Merged into a weight that is tied, an adapter would change both of its uses."""
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if isinstance(module, BaseTunerLayer):
            raise ValueError(
                f"lora_targets {arguments.lora_targets!r} include embeddings that are tied to the "
                "head: their adapter could not be merged into one without the other; name "
                "embed_tokens or lm_head in lora_modules_to_save instead, which unties them"
            )


def _targets(targets: str | list[str]) -> str | list[str]:
    """As peft takes them: to it a text is a pattern of whole paths, so one name alone is a list."""
    return [targets] if isinstance(targets, str) and targets.isidentifier() else targets


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """The model with its adapters added to its weights, which are whole afterwards.

    Weights of 4 bits are dequantised first, so the result is the function that was trained. peft
    would round the sums to 4 bits again.
    """
    base: Any = model.get_base_model()
    if not getattr(base, "is_loaded_in_4bit", False):
        return model.merge_and_unload()
    adapter, config = get_peft_model_state_dict(model), model.peft_config["default"]
    base = model.unload()
    base.dequantize()
    base.is_loaded_in_4bit = False
    whole: Any = get_peft_model(base, config)
    set_peft_model_state_dict(whole, adapter)
    return whole.merge_and_unload()

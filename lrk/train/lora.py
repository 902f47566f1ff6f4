"""LoRA adapters, by peft, on whole weights or on weights of 4 bits (QLoRA)."""

from typing import Any

from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from transformers import PreTrainedModel

from lrk.train.arguments import LrkTrainingArguments


def add_lora(model: PreTrainedModel, arguments: LrkTrainingArguments) -> PeftModel:
    """Freeze the model and put trainable adapters of rank `lora_rank` on `lora_targets`.

    The adapters are float32 also where the model is bfloat16 or of 4 bits.
    """
    config = LoraConfig(
        r=arguments.lora_rank,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=_targets(arguments.lora_targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


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

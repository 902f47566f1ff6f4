"""LoRA adapters, by peft."""

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from lrk.train.arguments import LrkTrainingArguments


def add_lora(model: PreTrainedModel, arguments: LrkTrainingArguments) -> PeftModel:
    """Freeze the model and put trainable adapters of rank `lora_rank` on `lora_targets`."""
    config = LoraConfig(
        r=arguments.lora_rank,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=arguments.lora_targets,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)

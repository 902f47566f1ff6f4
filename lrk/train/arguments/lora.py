"""LoRA adapters, on whole weights or on weights of 4 bits."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from transformers.utils.import_utils import BITSANDBYTES_MIN_VERSION, is_bitsandbytes_available

from lrk.train.arguments.argument import help_text
from lrk.train.engine import Engine
from lrk.versions import pip_install

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments


@dataclass
class LoraArguments:
    """The adapters, and the weights under them."""

    lora_rank: int = field(
        default=0, metadata=help_text("rank of LoRA adapters; 0 trains all parameters")
    )
    lora_alpha: int = field(
        default=16, metadata=help_text("scale of LoRA adapters, divided by the rank")
    )
    lora_dropout: float = field(default=0.0, metadata=help_text("dropout before LoRA adapters"))
    lora_targets: str | list[str] = field(
        default="all-linear",
        metadata=help_text(
            "names of modules that get LoRA adapters, or one pattern of their paths "
            "(default: all-linear)"
        ),
    )
    lora_modules_to_save: list[str] = field(
        default_factory=list,
        metadata=help_text(
            "ends of names of modules that are trained whole beside the adapters, such as "
            "embed_tokens and norm"
        ),
    )
    load_in_4bit: bool = field(
        default=False,
        metadata=help_text("QLoRA: the frozen linear layers in 4 bits, by bitsandbytes (NF4)"),
    )


def check_dropout(arguments: "LrkTrainingArguments") -> None:
    """Refuse what is no probability, or leaves nothing."""
    if not 0 <= arguments.lora_dropout < 1:
        raise ValueError(
            f"lora_dropout is {arguments.lora_dropout}; it must be at least 0 and below 1"
        )


def check(arguments: "LrkTrainingArguments") -> None:
    """Refuse 4 bits that cannot be trained, and arguments of adapters where there are none."""
    if arguments.lora_rank < 0:
        raise ValueError(f"lora_rank is {arguments.lora_rank}; it must be 0 or positive")
    if arguments.lora_alpha <= 0:
        raise ValueError(f"lora_alpha is {arguments.lora_alpha}; it must be positive")
    if not arguments.lora_targets:
        raise ValueError(f"lora_targets is {arguments.lora_targets!r}; it must name a module")
    if arguments.load_in_4bit:
        _check_4bit(arguments)
    for name in ("lora_alpha", "lora_dropout", "lora_targets", "lora_modules_to_save"):
        if arguments.is_given(name) and not arguments.lora_rank:
            raise ValueError(
                f"{name} is {getattr(arguments, name)!r} with lora_rank 0; it is for adapters, so "
                "give a positive lora_rank or leave it out"
            )


def _check_4bit(arguments: "LrkTrainingArguments") -> None:
    if not arguments.lora_rank:
        raise ValueError(
            "load_in_4bit is true with lora_rank 0; weights of 4 bits are not trained "
            "themselves, so lora_rank must be positive"
        )
    if arguments.gguf_file is not None:
        raise ValueError(
            f"load_in_4bit is true with gguf_file {arguments.gguf_file!r}, whose weights are "
            "quantised in another way; choose one of the two"
        )
    if not is_bitsandbytes_available():
        raise ValueError(
            "load_in_4bit is true, but bitsandbytes "
            f"{BITSANDBYTES_MIN_VERSION} or newer is not installed; "
            f"`{pip_install('bitsandbytes')}`"
        )


def check_engine(arguments: "LrkTrainingArguments", engine: Engine) -> None:
    """Refuse weights of 4 bits where they would be sharded."""
    if arguments.load_in_4bit and engine.shards_weights:
        raise ValueError(
            f"load_in_4bit is true with {engine.name}, which does not shard weights of 4 bits: "
            "each GPU would hold them whole, as it does under DDP (torchrun alone); use that, or "
            "LoRA without load_in_4bit"
        )
    if arguments.load_in_4bit and engine.is_deepspeed:
        raise ValueError(
            f"load_in_4bit is true with {engine.name}, which rounds float32 adapters to 16 bits; "
            "use torchrun alone (DDP), or LoRA without load_in_4bit"
        )

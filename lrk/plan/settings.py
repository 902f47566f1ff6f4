"""What a step is planned for."""

from dataclasses import dataclass

from lrk.plan.gpus import GPUS

DTYPES = ("bfloat16", "float16", "float32")

# Names of transformers' `optim`: moments (bytes an element) of those that refuse fake tensors.
LOW_BIT = {"adamw_torch_8bit": 1.0, "adamw_bnb_8bit": 1.0, "adamw_torch_4bit": 0.5}
TRACED = ("adamw_torch_fused", "adamw_torch", "sgd", "adafactor")
OPTIMIZERS = (*TRACED, *LOW_BIT)

STOCK, LIGER_STYLE, LRK = "stock", "liger-style", "lrk"
IMPLEMENTATIONS = {
    LRK: {"rope": True, "attention": True, "cross_entropy": True},
    LIGER_STYLE: {"rope": True, "attention": False, "cross_entropy": True},
    STOCK: None,
}


@dataclass(frozen=True)
class Settings:
    """A training step on one device; names are those of the trainer's arguments where it has them.

    Attributes:
        length: real tokens of a sample; how far its positions reach costs no memory.
        batch: samples of a forward pass.
        implementation: `lrk`; `stock`; or `liger-style`, lrk's loss and RoPE with PyTorch's
            attention.
        dtype: of the weights.
        bf16: bf16 autocast, as transformers' flag.
        activation_checkpointing: of every layer, transformers' own.
        keeps_attention: whether checkpointing keeps what attention made (`lrk.checkpointing`).
        accumulates: whether `gradient_accumulation_steps` is more than 1, so that a backward pass
            meets gradients.
        optim: transformers' name of the optimizer.
        lora_rank: 0 trains all parameters.
        clips: whether gradients are clipped by their norm.
        gpu: one of `GPUS`, or `cpu`.

    Raises:
        ValueError: for a value that no step has.
    """

    length: int
    batch: int = 1
    implementation: str = LRK
    dtype: str = "bfloat16"
    bf16: bool = False
    activation_checkpointing: bool = True
    keeps_attention: bool = False
    accumulates: bool = True
    optim: str = "adamw_torch_8bit"
    lora_rank: int = 0
    clips: bool = True
    gpu: str = "h100"

    def __post_init__(self) -> None:
        for name, least in (("length", 2), ("batch", 1), ("lora_rank", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name, allowed in (
            ("implementation", tuple(IMPLEMENTATIONS)),
            ("dtype", DTYPES),
            ("optim", OPTIMIZERS),
            ("gpu", (*GPUS, "cpu")),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        if self.keeps_attention and not (
            self.activation_checkpointing and self.implementation == LRK
        ):
            raise ValueError(
                "keeps_attention is true; it needs activation_checkpointing and implementation "
                f"{LRK!r}"
            )

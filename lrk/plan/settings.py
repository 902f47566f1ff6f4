"""What a step is planned for."""

from dataclasses import dataclass, fields

from lrk.field_types import check_types
from lrk.fsdp import steps_plain_tensors
from lrk.hf.backends import BACKENDS
from lrk.hf.backends import LRK as LRK_ATTENTION
from lrk.hf.distillation import ORIGINAL, TEACHERS
from lrk.hf.flash_attention import PACKAGES as FLASH_ATTENTIONS
from lrk.hf.sdpa import IMPLEMENTATION as SDPA
from lrk.plan.gpus import GPUS

# A score of stock attention for each pair of them still has a size that PyTorch can count.
LONGEST = 2**30

DTYPES = ("bfloat16", "float16", "float32")

# Names of transformers' `optim`: moments (bytes an element) of those that refuse fake tensors.
LOW_BIT = {"adamw_torch_8bit": 1.0, "adamw_bnb_8bit": 1.0, "adamw_torch_4bit": 0.5}
TRACED = ("adamw_torch_fused", "adamw_torch", "sgd", "adafactor")
OPTIMIZERS = (*TRACED, *LOW_BIT)

# PyTorch cuts each weight into as many pieces as there are processes, one by one.
MOST_PROCESSES = 1024

STOCK, LIGER_STYLE, LRK = "stock", "liger-style", "lrk"
IMPLEMENTATIONS = {
    LRK: {"rope": True, "attention": True, "cross_entropy": True},
    LIGER_STYLE: {"rope": True, "attention": False, "cross_entropy": True},
    STOCK: {"rope": False, "attention": False, "cross_entropy": False},
}


@dataclass(frozen=True)
class Settings:
    """A training step on one device; names are those of the trainer's arguments where it has them.

    Attributes:
        length: real tokens of a sample; how far its positions reach costs no memory.
        batch: samples of a forward pass.
        implementation: `lrk`; `stock`; or `liger-style`, lrk's loss and RoPE with PyTorch's
            attention.
        attention: whose attention `lrk` runs, as `lrk.patch` names it.
        dtype: of the weights.
        bf16: bf16 autocast, as transformers' flag.
        activation_checkpointing: of every layer, transformers' own.
        keep_attention: whether checkpointing keeps what attention made, as `lrk.memory` can.
        layers_per_checkpoint: layers from one checkpoint to the next.
        tile_tokens: tokens of a tile of norms and MLPs (`lrk.memory.tiles`); 0 computes them whole.
        offload_activations: whether checkpointing holds the inputs of the layers on the host.
        accumulates: whether `gradient_accumulation_steps` is more than 1, so that a backward pass
            meets gradients.
        optim: transformers' name of the optimizer.
        optimizer_in_backward: whether parameters are updated, and gradients freed, as they come.
        offload_optimizer: whether the optimizer's state and step are the host's.
        lora_rank: 0 trains all parameters.
        lora_modules_to_save: ends of names of modules that are trained whole beside the adapters.
        load_in_4bit: whether the linear layers under the adapters are in 4 bits (QLoRA).
        clips: whether gradients are clipped by their norm.
        distill: the teacher of self-distillation (`lrk.train.distillation`): the model itself on
            `views` of a sample, a frozen copy of the `original` on short contexts, or none.
        distill_length: tokens of a short context; 0 for `lrk.hf.distillation.short_context`.
        gpu: one of `GPUS`, or `cpu`.
        fsdp: processes, each with a GPU, that weights, gradients and optimizer are sharded over by
            FSDP2; 1 for one that has them whole.
        sequence_parallel: how many of these share a sample, neighbours; `fsdp / sequence_parallel`
            groups of them compute `batch` samples each.
        sync_each_batch: accelerate's: with `fsdp`, gradients are reduced after each micro-batch, as
            lrk-train has it; else a process holds those of whole weights until the last one.

    Raises:
        ValueError: for a value that no step has.
    """

    length: int
    batch: int = 1
    implementation: str = LRK
    attention: str = LRK_ATTENTION
    dtype: str = "bfloat16"
    bf16: bool = False
    activation_checkpointing: bool = True
    keep_attention: bool = False
    layers_per_checkpoint: int = 1
    tile_tokens: int = 0
    offload_activations: bool = False
    accumulates: bool = True
    optim: str = "adamw_torch_8bit"
    optimizer_in_backward: bool = False
    offload_optimizer: bool = False
    lora_rank: int = 0
    lora_modules_to_save: tuple[str, ...] = ()
    load_in_4bit: bool = False
    clips: bool = True
    distill: str = "none"
    distill_length: int = 0
    gpu: str = "h100"
    fsdp: int = 1
    sequence_parallel: int = 1
    sync_each_batch: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        for name, least in (
            ("length", 2),
            ("batch", 1),
            ("lora_rank", 0),
            ("tile_tokens", 0),
            ("layers_per_checkpoint", 1),
            ("distill_length", 0),
            ("fsdp", 1),
            ("sequence_parallel", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.length * self.batch > LONGEST:
            raise ValueError(
                f"length is {self.length} and batch {self.batch}; together they must be at most "
                f"{LONGEST:,} tokens"
            )
        for name, allowed in (
            ("implementation", tuple(IMPLEMENTATIONS)),
            ("attention", tuple(BACKENDS)),
            ("dtype", DTYPES),
            ("optim", OPTIMIZERS),
            ("distill", TEACHERS),
            ("gpu", (*GPUS, "cpu")),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        if self.fsdp > MOST_PROCESSES:
            raise ValueError(
                f"fsdp is {self.fsdp}; it must be at most {MOST_PROCESSES}: PyTorch cuts each "
                "weight into as many pieces, one by one, and a plan for more takes minutes"
            )
        if self.fsdp > 1 and steps_plain_tensors(self.optim):
            raise ValueError(
                f"optim is {self.optim} with fsdp {self.fsdp}; it knows nothing of FSDP2's sharded "
                "tensors: take adamw_torch_fused"
            )
        if self.distill_length > self.length:
            raise ValueError(
                f"distill_length is {self.distill_length}; it must be at most length {self.length}"
            )
        if self.fsdp % self.sequence_parallel:
            raise ValueError(
                f"sequence_parallel is {self.sequence_parallel}; it must divide the {self.fsdp} "
                "processes of fsdp"
            )
        if self.sequence_parallel > 1 and self.length % (2 * self.sequence_parallel):
            raise ValueError(
                f"length is {self.length}; with sequence_parallel {self.sequence_parallel} it must "
                f"be a multiple of {2 * self.sequence_parallel}, two pieces each"
            )
        self._check_techniques()

    def _check_techniques(self) -> None:
        checkpoints = self.activation_checkpointing
        defaults = {field.name: field.default for field in fields(self)}
        halves = self.dtype != "float32" or self.bf16
        for name, is_possible, needed in (
            ("attention", self.implementation == LRK, f"implementation {LRK!r}"),
            (
                "attention",
                self.attention not in FLASH_ATTENTIONS or self.gpu != "cpu",
                "a GPU",
            ),
            (
                "attention",
                self.attention == LRK_ATTENTION or self.gpu == "cpu" or halves,
                "dtype bfloat16 or float16, or bf16 autocast",
            ),
            (
                "keep_attention",
                checkpoints and self.implementation == LRK and self.attention == LRK_ATTENTION,
                f"activation_checkpointing, implementation {LRK!r} and attention {LRK_ATTENTION!r}",
            ),
            (
                "layers_per_checkpoint",
                checkpoints and self.implementation == LRK,
                f"activation_checkpointing and implementation {LRK!r}",
            ),
            ("offload_activations", checkpoints, "activation_checkpointing"),
            (
                "optimizer_in_backward",
                not (self.accumulates or self.clips),
                "accumulates and clips to be false",
            ),
            ("offload_optimizer", self.optim in TRACED, f"one of the optim {', '.join(TRACED)}"),
            ("lora_modules_to_save", self.lora_rank > 0, "lora_rank to be positive"),
            ("load_in_4bit", self.lora_rank > 0, "lora_rank to be positive"),
            ("offload_optimizer", self.fsdp == 1, "fsdp to be 1: FSDP2 offloads in its own way"),
            ("optimizer_in_backward", self.fsdp == 1, "fsdp to be 1"),
            ("load_in_4bit", self.fsdp == 1, "fsdp to be 1: 4-bit weights are not sharded"),
            (
                "sequence_parallel",
                self.implementation == LRK and self.attention == LRK_ATTENTION,
                f"implementation {LRK!r} and attention {LRK_ATTENTION!r}",
            ),
            ("distill", self.implementation == LRK, f"implementation {LRK!r}"),
            (
                "distill",
                self.distill != ORIGINAL
                or (self.fsdp == 1 and self.attention != SDPA and not self.load_in_4bit),
                f"fsdp 1, weights of more than 4 bits, and another attention than {SDPA!r}",
            ),
            ("distill_length", self.distill == ORIGINAL, f"distill {ORIGINAL!r}"),
            ("sync_each_batch", self.fsdp > 1 and self.accumulates, "fsdp above 1, accumulates"),
        ):
            if getattr(self, name) != defaults[name] and not is_possible:
                raise ValueError(f"{name} is {getattr(self, name)}; it needs {needed}")

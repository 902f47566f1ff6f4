"""Less device memory for a training step."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from transformers.trainer_pt_utils import AcceleratorConfig

from lrk.fsdp import steps_plain_tensors
from lrk.train.arguments.argument import help_text
from lrk.train.engine import FSDP2, ZERO_3, Engine

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments

HOST_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "sgd", "adafactor")


@dataclass
class MemoryArguments:
    """What is kept, what is computed again, and what the host holds."""

    keep_attention: bool = field(
        default=False,
        metadata=help_text("checkpoints keep what attention made: more memory, less time"),
    )
    layers_per_checkpoint: int = field(
        default=1, metadata=help_text("layers from one checkpoint to the next")
    )
    tile_tokens: int = field(
        default=0,
        metadata=help_text(
            "compute norms and MLPs in tiles of so many tokens; 0 computes them whole"
        ),
    )
    offload_activations: bool = field(
        default=False, metadata=help_text("hold checkpoints in host memory")
    )
    optimizer_in_backward: bool = field(
        default=False,
        metadata=help_text("update each parameter, and free its gradient, as soon as it has one"),
    )
    offload_optimizer: bool = field(
        default=False,
        metadata=help_text("hold the optimizer's state in host memory, and step there"),
    )

    @property
    def own_checkpointing(self) -> list[str]:
        """What is asked of checkpointing that `lrk.memory.checkpointing` adds to transformers'."""
        defaults = {
            "keep_attention": False,
            "offload_activations": False,
            "layers_per_checkpoint": 1,
        }
        return [name for name, default in defaults.items() if getattr(self, name) != default]


def check(arguments: "LrkTrainingArguments") -> None:
    """Refuse techniques without what they need."""
    for name, least in (("tile_tokens", 0), ("layers_per_checkpoint", 1)):
        if getattr(arguments, name) < least:
            allowed = "0 or positive" if least == 0 else f"at least {least}"
            raise ValueError(f"{name} is {getattr(arguments, name)}; it must be {allowed}")
    checkpoints = _checkpoints(arguments)
    options = getattr(arguments, "activation_checkpointing_kwargs", None)
    for name in arguments.own_checkpointing:
        said = f"{name} is {str(getattr(arguments, name)).lower()}"
        if not checkpoints:
            raise ValueError(f"{said}; it needs activation_checkpointing")
        if options or arguments.gradient_checkpointing_kwargs:
            raise ValueError(
                f"{said} with activation_checkpointing_kwargs; give one of them: lrk sets its own"
            )
        attention = arguments.kernels["attention"]
        if name != "offload_activations" and not attention:
            raise ValueError(f"{said}; it needs kernels.attention")
        if name == "keep_attention" and attention is not True:
            raise ValueError(
                f"{said} with kernels.attention {attention!r}; it keeps what lrk's own attention "
                "made, so leave kernels.attention true"
            )
    if arguments.optimizer_in_backward:
        for name, needed in (
            ("gradient_accumulation_steps", 1),
            ("max_grad_norm", 0),
            ("fp16", False),
        ):
            if getattr(arguments, name) != needed:
                raise ValueError(
                    f"{name} is {getattr(arguments, name)} with optimizer_in_backward; it must be "
                    f"{needed}: gradients are gone before they could be summed, clipped or "
                    "unscaled"
                )
    optim = _optimizer(arguments)
    if arguments.offload_optimizer and optim not in HOST_OPTIMIZERS:
        raise ValueError(
            f"optim is {optim} with offload_optimizer; it must be one of "
            f"{', '.join(HOST_OPTIMIZERS)}"
        )


def resolve_engine(arguments: "LrkTrainingArguments", engine: Engine) -> None:
    """Under FSDP2 reduce gradients after each micro-batch, if it is not said otherwise.

    Until they are reduced each process keeps those of whole weights, in the dtype that they are
    computed in: 15 GiB of bf16 for a model of 8B. Long samples leave time to send them.
    """
    if engine.name != FSDP2:
        return
    config = arguments.accelerator_config
    assert isinstance(config, AcceleratorConfig)
    given = config.gradient_accumulation_kwargs or {}
    config.gradient_accumulation_kwargs = {"sync_each_batch": True} | given


def check_engine(arguments: "LrkTrainingArguments", engine: Engine) -> None:
    """Refuse techniques that an engine undoes, and those that it has itself."""
    if arguments.optimizer_in_backward and engine.processes > 1:
        raise ValueError(
            f"optimizer_in_backward is true with {engine.processes} processes; it needs one: "
            "it would take each process's gradients before they are averaged"
        )
    for name in ("optimizer_in_backward", "offload_optimizer"):
        if getattr(arguments, name) and (engine.shards_weights or engine.is_deepspeed):
            raise ValueError(
                f"{name} is true with {engine.name}, which puts its own parameters in the place "
                f"of those that it would step; use {_offload_of(engine)}"
            )
    if engine.name == FSDP2 and steps_plain_tensors(optim := _optimizer(arguments)):
        raise ValueError(
            f"optim is {optim} with FSDP2, of whose sharded tensors it knows nothing; take "
            "adamw_torch_fused, or DDP"
        )
    if arguments.tile_tokens and engine.name == ZERO_3:
        raise ValueError(
            f"tile_tokens is {arguments.tile_tokens} with ZeRO-3, which takes a layer's weights "
            "away before a tile's gradients are summed; leave it 0, or use FSDP2"
        )
    if engine.checkpoints_activations and _checkpoints(arguments):
        raise ValueError(
            "FSDP's activation_checkpointing is on beside that of the arguments; a layer is "
            "computed again by one of them: leave FSDP's out"
        )
    if arguments.auto_find_batch_size and engine.name == ZERO_3:
        raise ValueError("auto_find_batch_size is true with ZeRO-3, which cannot begin again")


def _checkpoints(arguments: "LrkTrainingArguments") -> bool:
    """Whether layers are computed again; older releases of transformers know one name only."""
    return bool(
        getattr(arguments, "activation_checkpointing", None) or arguments.gradient_checkpointing
    )


def _optimizer(arguments: "LrkTrainingArguments") -> str:
    return str(getattr(arguments.optim, "value", arguments.optim))


def _offload_of(engine: Engine) -> str:
    if engine.is_deepspeed:
        return "zero_optimization.offload_optimizer of the DeepSpeed configuration"
    return "fsdp_config.cpu_offload, or --fsdp_offload_params of accelerate launch"

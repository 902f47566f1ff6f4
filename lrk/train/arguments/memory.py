"""Less device memory for a training step."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lrk.train.arguments.argument import help_text

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
    # Older releases of transformers know the second name only.
    checkpoints = (
        getattr(arguments, "activation_checkpointing", None) or arguments.gradient_checkpointing
    )
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
    optim = str(getattr(arguments.optim, "value", arguments.optim))
    if arguments.offload_optimizer and optim not in HOST_OPTIMIZERS:
        raise ValueError(
            f"optim is {optim} with offload_optimizer; it must be one of "
            f"{', '.join(HOST_OPTIMIZERS)}"
        )


def check_processes(arguments: "LrkTrainingArguments") -> None:
    """Refuse updates before the gradients of several processes are averaged."""
    if arguments.optimizer_in_backward and arguments.world_size > 1:
        raise ValueError(
            f"optimizer_in_backward is true with {arguments.world_size} processes; it needs one: "
            "it would take each process's gradients before they are averaged"
        )

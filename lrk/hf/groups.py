"""Several decoder layers under one checkpoint.

transformers checkpoints each layer by itself. For the length of a forward pass the base model is
given groups of layers in place of its layers; before and after it, and for everything else (names,
state dicts, adapters), the model is what it was.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from lrk.frequencies import rope_layer_types

_GROUPS, _LAYERS = "_layer_groups", "_layers_outside_forward"


class LayerGroup(GradientCheckpointingLayer):
    """Layers that follow each other; checkpointed as one where they were checkpointed each."""

    def __init__(self, members: list[Any]) -> None:
        super().__init__()
        # A tuple is not registered: the layers belong to the model.
        self.members = tuple(members)
        self.gradient_checkpointing = members[0].gradient_checkpointing
        self._gradient_checkpointing_func = members[0]._gradient_checkpointing_func

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        for layer in self.members:
            hidden_states = layer(hidden_states, **kwargs)
        return hidden_states


def check_groups(config: PretrainedConfig, layers_per_checkpoint: int) -> None:
    """Raise `ValueError` where the layers of a group would need different arguments.

    A group is given what its place among the groups would be given.
    """
    kinds = rope_layer_types(config)
    if layers_per_checkpoint > 1 and len(kinds) > 1:
        raise ValueError(
            f"layers_per_checkpoint is {layers_per_checkpoint}, and the model has RoPE parameters "
            f"of their own for {' and '.join(map(str, kinds))}: leave it at 1"
        )


def group_layers(model: nn.Module, layers_per_checkpoint: int) -> None:
    """Checkpoint several layers as one, where checkpointing is on; the last group may be smaller.

    Args:
        model: a model of transformers, or a peft model around one, whose layers all take the same
            arguments (`check_groups`).
        layers_per_checkpoint: 1 leaves the layers alone, and undoes an earlier call.
    """
    for base in model.modules():
        layers = base._modules.get("layers")
        if not isinstance(layers, nn.ModuleList):
            continue
        if _GROUPS not in vars(base) and layers_per_checkpoint > 1:
            base.register_forward_pre_hook(_swap)
            base.register_forward_hook(_restore, always_call=True)
        # In a tuple, which is not registered either.
        vars(base)[_GROUPS] = (
            (_groups(layers, layers_per_checkpoint),) if layers_per_checkpoint > 1 else ()
        )


def layer_groups(base: nn.Module) -> list[LayerGroup]:
    """What `group_layers` made of a base model's layers."""
    return [group for groups in vars(base).get(_GROUPS, ()) for group in groups]


def _groups(layers: nn.ModuleList, layers_per_checkpoint: int) -> nn.ModuleList:
    starts = range(0, len(layers), layers_per_checkpoint)
    groups = nn.ModuleList(LayerGroup([*layers[at : at + layers_per_checkpoint]]) for at in starts)
    member: Any
    for member in layers:
        member.gradient_checkpointing = False
    return groups


def _swap(base: Any, args: Any) -> None:
    # transformers' own calls switch checkpointing off here, or on in each layer.
    if not base.gradient_checkpointing or base.layers[0].gradient_checkpointing:
        return
    for groups in vars(base)[_GROUPS]:
        vars(base)[_LAYERS] = base._modules["layers"]
        base._modules["layers"] = groups.train(base.training)


def _restore(base: nn.Module, args: Any, output: Any) -> None:
    layers = vars(base).pop(_LAYERS, None)
    if layers is not None:
        base._modules["layers"] = layers

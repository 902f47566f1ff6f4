"""What a config says of each layer: whether it attends, rotates by positions, and how far it sees.

Read before there is a model, from what transformers itself builds the layers from: `layer_types`,
`no_rope_layers` and `sliding_window`.
"""

from typing import Any, NamedTuple

from transformers import PretrainedConfig

FULL, SLIDING = "full_attention", "sliding_attention"
# State-space and linear-attention layers, which know order and no positions: Gated DeltaNet, Mamba,
# short convolutions. Up to transformers 5.23 some have other names.
RECURRENT = ("linear_attention", "mamba", "conv", "recurrent")

# What a config has a value of for each layer.
PER_LAYER = ("layer_types", "no_rope_layers")


class LayerKind(NamedTuple):
    """One layer.

    Attributes:
        attends: whether it is attention at all.
        rotates: whether queries and keys are rotated by positions (RoPE).
        window: distances below it are seen; None sees all.
    """

    attends: bool = True
    rotates: bool = True
    window: int | None = None


def layer_kinds(config: PretrainedConfig) -> tuple[LayerKind, ...]:
    """The kind of each layer of a text model, in order.

    Without `layer_types` all layers have the `sliding_window`, if there is one.

    Raises:
        ValueError: for a kind of `layer_types` that is not known here.
    """
    count, window = config.num_hidden_layers, _declared(config, "sliding_window")
    types = _declared(config, "layer_types") or [SLIDING if window else FULL] * count
    if unknown := sorted(set(types) - {FULL, SLIDING, *RECURRENT}):
        raise ValueError(
            f"config.layer_types has {unknown[0]!r}; it must be made of "
            f"{', '.join((FULL, SLIDING, *RECURRENT))}"
        )
    rotates = _declared(config, "no_rope_layers") or [1] * count  # 1 where there is RoPE
    return tuple(
        LayerKind(
            attends=kind not in RECURRENT,
            rotates=bool(turned) and kind not in RECURRENT,
            window=window if kind == SLIDING else None,
        )
        for kind, turned in zip(types, rotates, strict=True)
    )


def _declared(config: PretrainedConfig, name: str) -> Any:
    """A value that the model reads: a config keeps words of other models, and nobody looks."""
    return getattr(config, name) if hasattr(type(config), name) else None


def period(kinds: tuple[LayerKind, ...]) -> int:
    """Layers after which the kinds begin again, `i` and `i + period` being alike throughout."""
    count = len(kinds)
    return next(n for n in range(1, count + 1) if kinds[n:] == kinds[: count - n])

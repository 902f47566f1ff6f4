"""A longer window for a pretrained model: its RoPE and its config."""

import logging
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from lrk.frequencies import rope_layer_types, rope_parameters
from lrk.hf.architectures import text_config
from lrk.rope_scaling import SCALED_THETA, RopePlan, scaled_rope_parameters

logger = logging.getLogger(__name__)


def extend(
    model: PreTrainedModel,
    target_length: int,
    plan: RopePlan = SCALED_THETA,
    original: PretrainedConfig | None = None,
) -> PreTrainedModel:
    """Give a model the RoPE and `max_position_embeddings` of a longer window, in place.

    The frequencies are static, so that they do not change with the largest position of a batch, and
    they are part of `config.rope_parameters`, so that any program that loads the model has them.

    Args:
        model: a model of transformers, patched or not.
        target_length: window in tokens. One that the model has already changes nothing, and a plan
            that is named for it is answered with a warning.
        plan: how RoPE is stretched.
        original: in a run of stages, the config of the model that it began with, whose RoPE is
            stretched then (`stretched_rope`). A plan that changes nothing is as it should be, and
            noted without a warning.

    Returns:
        `model` itself.

    Raises:
        ValueError: as `lrk.rope_scaling.scaled_rope_parameters`.
    """
    config = text_config(model.config)
    window = config.max_position_embeddings
    if plan != SCALED_THETA and plan.theta is None and target_length <= window:
        logger.log(
            logging.WARNING if original is None else logging.INFO,
            "rope_scaling %r changes nothing: the model has a window of %s tokens already",
            plan.name,
            f"{window:,}",
        )
    extend_config(config, target_length, plan, original)
    for module in model.modules():
        rotary = getattr(module, "rotary_emb", None)
        # The eyes of a model that sees have frequencies of their own.
        if rotary is not None and type(rotary.config) is type(config):
            device = next(rotary.buffers()).device
            module.rotary_emb = type(rotary)(config=config).to(device)
    return model


def stretched_rope(
    config: PretrainedConfig,
    target_length: int,
    plan: RopePlan,
    original: PretrainedConfig | None = None,
) -> dict[str, Any]:
    """The `rope_parameters` of a longer window.

    Where stages grow the window, each stretches the RoPE of the `original` model: the last one has
    what a single stretch to its window gives. (Stretching what is stretched would not: of
    `scaled_rope_theta` the base has the factor `f^2 - f + 1`, up to a power near 1, and those of 2
    and 8 are 3 and 57, that of 16 is 241.)

    Raises:
        ValueError: as `lrk.rope_scaling.scaled_rope_parameters`.
    """
    grows = target_length > config.max_position_embeddings
    begins = config if original is None or not grows else text_config(original)
    return scaled_rope_parameters(begins, target_length, plan)


def extend_config(
    config: PretrainedConfig,
    target_length: int,
    plan: RopePlan,
    original: PretrainedConfig | None = None,
) -> None:
    """What `extend` makes of a model's config, in place."""
    config.rope_parameters = stretched_rope(config, target_length, plan, original)
    config.max_position_embeddings = max(config.max_position_embeddings, target_length)
    if not hasattr(config, "original_max_position_embeddings"):
        return
    # Phi-3 has it beside its RoPE parameters too, and transformers takes it from there.
    for kind in rope_layer_types(config):
        original = rope_parameters(config, kind).get("original_max_position_embeddings")
        if original is not None:
            config.original_max_position_embeddings = original

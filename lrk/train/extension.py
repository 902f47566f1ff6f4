"""A longer window for a pretrained model: its RoPE base and its config."""

from transformers import PretrainedConfig, PreTrainedModel

from lrk.frequencies import rotary_dim
from lrk.positions import scaled_rope_theta

# The frequencies of the other types depend on max_position_embeddings or on the batch at hand.
SCALABLE_ROPE_TYPES = ("default", "linear", "llama3")


def extend(
    model: PreTrainedModel, target_length: int, rope_theta: float | None = None
) -> PreTrainedModel:
    """Give a model the RoPE base and `max_position_embeddings` of a longer window, in place.

    The base is static, so that it does not change with the largest position of a batch, and it is
    part of `config.rope_parameters`, so that any program that loads the model has it.

    Args:
        model: a model of transformers, patched or not.
        target_length: window in tokens. A window that the model has already changes nothing.
        rope_theta: base to use; None scales the model's own by `scaled_rope_theta`.

    Returns:
        `model` itself.

    Raises:
        ValueError: for a `rope_type` whose frequencies change with the window.
    """
    config = model.config
    check_extensible(config, target_length)
    length = config.max_position_embeddings
    parameters = dict(config.rope_parameters)
    if rope_theta is None and target_length > length:
        rope_theta = scaled_rope_theta(
            parameters["rope_theta"], length, target_length, rotary_dim(config)
        )
    if rope_theta is not None:
        parameters["rope_theta"] = rope_theta
    if parameters.get("rope_type") == "llama3":
        # Absent, it would silently become the new maximum.
        parameters.setdefault("original_max_position_embeddings", length)
    config.rope_parameters = parameters
    config.max_position_embeddings = max(length, target_length)
    for module in model.modules():
        rotary = getattr(module, "rotary_emb", None)
        if rotary is not None:
            module.rotary_emb = type(rotary)(config=config).to(rotary.inv_freq.device)
    return model


def check_extensible(config: PretrainedConfig, target_length: int) -> None:
    """Raise `ValueError` if `extend` would, before any weights are loaded."""
    rope_type = config.rope_parameters.get("rope_type", "default")
    if target_length > config.max_position_embeddings and rope_type not in SCALABLE_ROPE_TYPES:
        raise ValueError(
            f"the model's rope_type is {rope_type!r}, whose frequencies change with the window; "
            f"target_length can exceed its {config.max_position_embeddings} positions only for "
            f"{', '.join(SCALABLE_ROPE_TYPES)}"
        )

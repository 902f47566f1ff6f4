"""One trial: a model extended for a while, as `lrk-train` would extend it; its weights stay."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers import PreTrainedModel

from lrk.longrope.needles import NeedleSample, needle_loss
from lrk.rope_scaling import RopePlan
from lrk.train.extension import extend

_EXTENDED = ("rope_parameters", "max_position_embeddings", "original_max_position_embeddings")


@contextmanager
def extended(model: PreTrainedModel, target_length: int, plan: RopePlan) -> Iterator[None]:
    """`lrk.train.extension.extend` for the length of a `with` block.

    Args:
        model: patched or not; its rotary embeddings are made anew, and put back.
        target_length: window in tokens.
        plan: how RoPE is stretched.
    """
    config = model.config
    before = {name: getattr(config, name) for name in _EXTENDED if hasattr(config, name)}
    rotary = [
        (module, module.rotary_emb)
        for module in model.modules()
        if getattr(module, "rotary_emb", None) is not None
    ]
    try:
        extend(model, target_length, plan)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
        for module, embedding in rotary:
            module.rotary_emb = embedding


def loss_with(
    model: PreTrainedModel, samples: Sequence[NeedleSample], target_length: int, plan: RopePlan
) -> float:
    """`needle_loss` of a model that is extended by a plan."""
    with extended(model, target_length, plan):
        return needle_loss(model, samples)

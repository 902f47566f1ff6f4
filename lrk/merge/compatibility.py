"""Whether models can be merged: same architecture, same vocabulary, same tensors."""

from collections.abc import Sequence

from lrk.merge.checkpoint import Checkpoint

POSITIONS = {
    "max_position_embeddings",
    "original_max_position_embeddings",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
}
"""Keys in which a model and its extension differ: the user says which to keep."""
IRRELEVANT = {
    "architectures",  # old files spell it LLaMAForCausalLM; model_type and tensors are compared
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Keys that say nothing about what the tensors mean."""


def check_compatible(models: Sequence[Checkpoint], chooses_config: bool) -> None:
    """Raise `ValueError` in one sentence about the first thing that does not fit.

    Args:
        models: all of them are compared with the first.
        chooses_config: whether the user has said whose configuration the merged model gets.
    """
    first, *others = models
    for other in others:
        _check_configs(first, other, chooses_config)
        _check_vocabularies(first, other)
        _check_tensors(first, other)


def _check_configs(first: Checkpoint, other: Checkpoint, chooses_config: bool) -> None:
    keys = (first.config.keys() | other.config.keys()) - IRRELEVANT
    for key in sorted(keys, key=lambda key: (key in POSITIONS, key)):
        ours, theirs = first.config.get(key), other.config.get(key)
        if ours == theirs or (key in POSITIONS and chooses_config):
            continue
        difference = f"{key} is {ours!r} in {first.folder} and {theirs!r} in {other.folder}"
        if key in POSITIONS:
            raise ValueError(f"{difference}; say with config_from which model's to keep")
        raise ValueError(f"{difference}; models that are merged must have the same")


def _check_vocabularies(first: Checkpoint, other: Checkpoint) -> None:
    ours, theirs = first.vocabulary, other.vocabulary
    if ours is None or theirs is None or ours == theirs:
        return
    token = min(token for token, _ in ours.items() ^ theirs.items())
    first_id, other_id = ours.get(token, "absent"), theirs.get(token, "absent")
    raise ValueError(
        f"token {token!r} is {first_id} in the vocabulary of {first.folder} and {other_id} in that "
        f"of {other.folder}; models that are merged must have the same"
    )


def _check_tensors(first: Checkpoint, other: Checkpoint) -> None:
    for one, two in ((first, other), (other, first)):
        missing = sorted(one.tensors.keys() - two.tensors.keys())
        if missing:
            raise ValueError(f"{two.folder} has no tensor {missing[0]}, which {one.folder} has")
    for name, tensor in first.tensors.items():
        shape = other.tensors[name].shape
        if tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {tensor.shape} in {first.folder} and {shape} in {other.folder}"
            )

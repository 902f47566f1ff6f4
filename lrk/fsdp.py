"""What lrk asks of accelerate's FSDP2, in training and in plans of it."""

from dataclasses import replace

from accelerate import FullyShardedDataParallelPlugin

# Parts of the names of transformers' `optim` that are of bitsandbytes, unless they are PyTorch's.
_OF_BITSANDBYTES = ("8bit", "lion", "ademamix", "paged", "bnb")


def keep_digits(plugin: FullyShardedDataParallelPlugin) -> None:
    """Gather weights and reduce gradients in 16 bits, and round nothing else.

    Otherwise FSDP2 rounds the loss too, and what it is made of: the number of labels that it is
    divided by (531 to 532 in bf16), weights of tokens.
    """
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, output_dtype=None, cast_forward_inputs=False
        )


def steps_plain_tensors(optim: str) -> bool:
    """Whether an `optim` of transformers knows nothing of sharded tensors: its Adafactor, and those
    of bitsandbytes."""
    return optim == "adafactor" or (
        "torch" not in optim and any(part in optim for part in _OF_BITSANDBYTES)
    )

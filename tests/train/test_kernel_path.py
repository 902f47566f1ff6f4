"""Which kernels a batch of the trainer takes, from the collator through a patched model.

python -m tests.train.test_kernel_path    # prints them as a table
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lrk
from lrk.kernels.attention import attention_triton, forward, key_gradient, query_gradient, schedule
from lrk.kernels.target import architecture
from lrk.recipe.collate import Batch, Collator

KERNELS = {
    "_attention_forward": forward,
    "_attention_query_gradient": query_gradient,
    "_attention_key_gradient": key_gradient,
    "_document_tiles": schedule,
}
LENGTH = 128
BATCHES = {
    "one document a row": [[LENGTH], [LENGTH]],
    "packed": [[40, LENGTH - 40], [LENGTH]],
    "packed in one row": [[40, 48, 40]],
}


class Taken(NamedTuple):
    """A launch."""

    kernel: str
    by_table: bool
    """Of the tiles of documents."""
    described: bool
    """Whether the tiles of the loop come through tensor descriptors."""
    split: bool
    tile: str


def batch_of(documents: list[list[int]]) -> Batch:
    """A batch of the trainer; positions skip at each document's middle."""

    def sample(lengths: list[int]) -> dict[str, Any]:
        skips = [torch.arange(n) + 1000 * (torch.arange(n) > n // 2) for n in lengths]
        return {
            "index": 0,
            "input_ids": torch.arange(LENGTH),
            "segment_lengths": [torch.tensor([n // 2, n - n // 2]) for n in lengths],
            "position_ids": torch.cat(skips),
        }

    return Collator(None)([sample(lengths) for lengths in documents])  # type: ignore[arg-type, misc]


@contextmanager
def recorded(taken: list[Taken]) -> Iterator[None]:
    """Within the block note each launch, and make it."""

    def noting(name: str, kernel: Any) -> Any:
        class Noting:
            def __getitem__(self, grid: Any) -> Any:
                def launch(**arguments: Any) -> None:
                    descriptors = [x for n, x in arguments.items() if n.endswith("_desc")]
                    taken.append(
                        Taken(
                            name,
                            arguments.get("tiles_ptr") is not None,
                            bool(descriptors) and all(x is not None for x in descriptors),
                            bool(arguments.get("SPLIT")),
                            f"{arguments.get('BLOCK_M', '')}x{arguments.get('BLOCK_N', '')}",
                        )
                    )
                    kernel[grid](**arguments)

                return launch

        return Noting()

    with pytest.MonkeyPatch.context() as patch:
        for name, module in KERNELS.items():
            patch.setattr(module, name, noting(name, getattr(module, name)))
        patch.setattr("lrk.hf.attention.attention", attention_triton)
        yield


def launches(batch: Batch, device: torch.device) -> list[Taken]:
    """What one step on a batch launches, in a model of one layer."""
    config = LlamaConfig(
        vocab_size=LENGTH,
        hidden_size=256,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=128,
    )
    model = LlamaForCausalLM(config).bfloat16()
    model.to(device)  # type: ignore[arg-type]
    arguments = {k: x.to(device) if torch.is_tensor(x) else x for k, x in batch.items()}
    taken: list[Taken] = []
    with recorded(taken):
        lrk.patch(model)(**arguments, use_cache=False).loss.backward()
    return taken


@pytest.mark.parametrize("name", BATCHES)
def test_every_launch_takes_descriptors(name, device):
    """Packed or not; a table of documents only where some row has several."""
    taken = launches(batch_of(BATCHES[name]), device)
    arch = architecture(torch.empty(0, device=device))
    described = arch.startswith(("sm_9", "sm_10", "sm_11"))
    packed = name != "one document a row"
    kernels = [launch for launch in taken if launch.kernel != "_document_tiles"]
    assert [launch.kernel for launch in kernels] == list(KERNELS)[:3]
    assert len(taken) - len(kernels) == (3 if packed else 0)
    assert all(launch.by_table == packed and launch.described == described for launch in kernels)


if __name__ == "__main__":
    for name, documents in BATCHES.items():
        for launch in launches(batch_of(documents), torch.device("cpu")):
            print(name, *launch, sep=" | ")

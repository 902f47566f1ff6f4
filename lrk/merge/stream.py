"""The merge: a few blocks of tensors in memory, whatever the size of the models."""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lrk.atomic import atomic_folder, remove_temporaries
from lrk.lock import locked
from lrk.merge.checkpoint import Checkpoint, read_checkpoint
from lrk.merge.compatibility import check_compatible
from lrk.merge.rules import Rule
from lrk.merge.shard import StoredTensor, write_blocks, write_header
from lrk.output_folder import check_output_dir
from lrk.progress import progress
from lrk.transformers_4 import make_readable
from lrk.weight_index import INDEX

logger = logging.getLogger(__name__)

COPIED = (
    "added_tokens.json",
    "chat_template.*",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer*",
    "vocab.*",
)


def merge(
    models: Sequence[str | Path],
    output_dir: str | Path,
    rule: Rule,
    config_from: str | Path | None = None,
) -> Path:
    """Merge models of one architecture into a new folder that transformers loads.

    The sums are formed in float64, block by block, and rounded once. The folder appears when it is
    complete. What is not tied in the files stays so, and what is tied stays tied. One process at a
    time merges into it.

    Args:
        models: folders with `config.json` and safetensors files.
        output_dir: must not exist, or be empty.
        rule: `Linear`, `Slerp` or `TaskArithmetic`.
        config_from: the one of `models` from which the merged model has its configuration, its
            tokenizer, and the dtypes and files of its tensors. Default: the first; needed where
            the models differ in their window or their RoPE.

    Returns:
        `output_dir`.

    Raises:
        ValueError: before anything is written, if the models do not fit together or another process
            merges into this folder; later, for a sum that is not finite, and no folder is left.
        SaveError: if something cannot be written; no folder is left then.
    """
    folders, output = [Path(model) for model in models], Path(output_dir)
    rule.check(len(folders))
    if config_from is not None and Path(config_from) not in folders:
        raise ValueError(f"config_from is {config_from}; it must be one of the models")
    _check_new(output)
    checkpoints = [read_checkpoint(folder) for folder in folders]
    check_compatible(checkpoints, chooses_config=config_from is not None)
    kept = checkpoints[0 if config_from is None else folders.index(Path(config_from))]
    _check_room(output, kept)
    with locked(output.absolute().parent, output.name):
        _check_new(output)
        remove_temporaries(output.absolute().parent, output.name)
        with atomic_folder(output) as folder:
            _write_weights(folder, checkpoints, kept, rule)
            for pattern in COPIED:
                for file in kept.folder.glob(pattern):
                    shutil.copyfile(file, folder / file.name)
            unseen = make_readable(folder)
    if unseen:
        logger.warning(unseen)
    return output


def _check_new(output: Path) -> None:
    check_output_dir(output)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"output_dir is {output}, which exists; it must be new or empty")


def _check_room(output: Path, kept: Checkpoint) -> None:
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < _num_bytes(kept):
        raise ValueError(
            f"output_dir is {output}, where {free / 2**30:.1f} GiB are free; the merged model has "
            f"{_num_bytes(kept) / 2**30:.1f} GiB"
        )


def _num_bytes(checkpoint: Checkpoint) -> int:
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in checkpoint.tensors.values())


def _write_weights(
    folder: Path, checkpoints: Sequence[Checkpoint], kept: Checkpoint, rule: Rule
) -> None:
    shards = kept.shards()
    with progress("tensors", len(kept.tensors)) as advance:
        for file_name, tensors in shards.items():
            with (folder / file_name).open("wb") as file:
                write_header(file, tensors)
                for name, tensor in tensors.items():
                    versions = [checkpoint.tensors[name] for checkpoint in checkpoints]
                    rounded = _rounded(name, _combined(versions, rule), tensor.dtype)
                    write_blocks(file, rounded, tensor.dtype)
                    advance()
    if len(shards) > 1:
        weight_map = {name: tensor.file.name for name, tensor in kept.tensors.items()}
        index = {"metadata": {"total_size": _num_bytes(kept)}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _combined(versions: Sequence[StoredTensor], rule: Rule) -> Iterator[Tensor]:
    """Blocks of the merged tensor."""
    coefficients = rule.coefficients(versions)
    for blocks in zip(*(version.blocks() for version in versions), strict=True):
        total = blocks[0].mul_(coefficients[0])
        for block, coefficient in zip(blocks[1:], coefficients[1:], strict=True):
            total.add_(block, alpha=coefficient)
        yield total


def _rounded(name: str, blocks: Iterator[Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    for block in blocks:
        rounded = block.to(dtype)
        if not rounded.isfinite().all():
            raise ValueError(
                f"{name} of the merged model has values that are not finite in "
                f"{str(dtype).removeprefix('torch.')}; nothing was written"
            )
        yield rounded

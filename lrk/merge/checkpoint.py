"""A model in a folder, as transformers saves it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from lrk.merge.shard import StoredTensor, read_header

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """Where everything of a model is; the tensors are not loaded.

    Attributes:
        config: of `config.json`, with the defaults of transformers filled in.
        tensors: by name, in the order of files and bytes.
        vocabulary: token to id, None without a tokenizer.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    vocabulary: dict[str, int] | None

    def shards(self) -> dict[str, dict[str, StoredTensor]]:
        """The tensors of each file, by its name."""
        shards: dict[str, dict[str, StoredTensor]] = {}
        for name, tensor in self.tensors.items():
            shards.setdefault(tensor.file.name, {})[name] = tensor
        return shards


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder's config, tokenizer and the headers of its safetensors files.

    Raises:
        ValueError: in one sentence, for what is missing or broken.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no folder with a config.json; it must hold a whole model")
    return Checkpoint(folder, _read_config(folder), _read_tensors(folder), _vocabulary(folder))


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return AutoConfig.from_pretrained(folder).to_dict()
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{folder / 'config.json'} could not be read: {reason}") from error


def _read_tensors(folder: Path) -> dict[str, StoredTensor]:
    if (folder / INDEX).is_file():
        weight_map = _read_json(folder / INDEX).get("weight_map", {})
    elif (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    else:
        raise ValueError(f"{folder} has neither {WEIGHTS} nor {INDEX}")
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        if not (folder / file).is_file():
            raise ValueError(f"{folder} has no {file}, which its {INDEX} names")
        tensors |= read_header(folder / file)
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise ValueError(f"{folder} has no tensor {missing[0]}, which its {INDEX} names")
    return tensors


def _vocabulary(folder: Path) -> dict[str, int] | None:
    if not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = _read_json(folder / "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pairs of a token and its score
        vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
    return vocabulary | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error

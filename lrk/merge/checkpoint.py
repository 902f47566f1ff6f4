"""A model in a folder, as transformers saves it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from lrk.merge.shard import StoredTensor, read_header
from lrk.pretrained import load_auto
from lrk.weight_index import INDEX, read_index

WEIGHTS = "model.safetensors"
FREQUENCIES = ".rotary_emb.inv_freq"
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Checkpoint:
    """Where everything of a model is; the tensors are not loaded.

    Attributes:
        config: of `config.json`, with the defaults of transformers filled in.
        tensors: by name, in the order of files and bytes; none that loading would make of others.
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
    for file in sorted(folder.iterdir()):
        _check_link(file)
    config = _read_config(folder)
    tensors = _needed(_read_tensors(folder), config)
    return Checkpoint(folder, config, tensors, _vocabulary(folder))


def _check_link(file: Path) -> None:
    """Refuse a link out of the folder: what it leads to would end in the merged model.

    The cache of the hub keeps the files of `snapshots/COMMIT` in `blobs`.
    """
    folder = file.parent.resolve()
    homes = [folder]
    if folder.parent.name == "snapshots":
        homes.append(folder.parent.parent / "blobs")
    target = file.resolve()
    if file.is_symlink() and not any(target.is_relative_to(home) for home in homes):
        raise ValueError(f"{file} is a link to {target}, out of the folder; it must hold a copy")


def _read_config(folder: Path) -> dict[str, Any]:
    """All but what transformers notes for itself: paths, a commit, implementations in use."""
    config = load_auto(AutoConfig, "config.json of", str(folder), None).to_dict()
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _read_tensors(folder: Path) -> dict[str, StoredTensor]:
    weight_map = read_index(folder)
    if weight_map is None:
        if not (folder / WEIGHTS).is_file():
            raise ValueError(f"{folder} has neither {WEIGHTS} nor {INDEX}")
        return read_header(folder / WEIGHTS)
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        for name, tensor in read_header(folder / file).items():
            if name in tensors or weight_map.get(name, file) != file:
                raise ValueError(
                    f"{folder / file} has a tensor {name!r}, which by its {INDEX} lies in "
                    f"{weight_map.get(name, tensors.get(name, tensor).file.name)}"
                )
            tensors[name] = tensor
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise ValueError(f"{folder} has no tensor {missing[0]!r}, which its {INDEX} names")
    return tensors


def _needed(tensors: dict[str, StoredTensor], config: dict[str, Any]) -> dict[str, StoredTensor]:
    """Less what old files hold and transformers neither reads nor writes.

    These are the frequencies of RoPE, which follow from the config, and a copy of the embeddings as
    the head that is tied to them. (A head that differs from them transformers does not tie.)
    """
    kept = {name: each for name, each in tensors.items() if not name.endswith(FREQUENCIES)}
    head, embeddings = kept.get(HEAD), kept.get(EMBEDDINGS)
    if config.get("tie_word_embeddings") and head and embeddings and _are_equal(head, embeddings):
        del kept[HEAD]
    return kept


def _are_equal(one: StoredTensor, other: StoredTensor) -> bool:
    if one.shape != other.shape:
        return False
    pairs = zip(one.blocks(), other.blocks(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def _vocabulary(folder: Path) -> dict[str, int] | None:
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        tokenizer = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = tokenizer["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram: pairs of a token and its score
            vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
        vocabulary |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        if not all(isinstance(token, str) and type(i) is int for token, i in vocabulary.items()):
            raise TypeError("its vocabulary is no mapping of tokens to ids")
        return vocabulary
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is no tokenizer: {error!r}") from error

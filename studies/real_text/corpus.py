"""The texts: files of Python's standard library, held out or trained on, and their tokenizer.

Code is text that a model can be asked about over any distance: a name that was defined once, far
before, has to be written the same again. The library lies on every machine, and another Python has
another one, which `version` tells apart.
"""

import functools
import hashlib
import json
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from lrk.atomic import atomic_folder
from studies.real_text.scale import Scale

MIN_BYTES, MAX_BYTES = 2_000, 310_000
"""Smaller files hold little; a larger one is a table (pydoc_data/topics.py)."""
LEFT_OUT = {"site-packages", "encodings"}
"""Folders: what is installed beside the library, and tables that hardly differ from each other."""
HELD_OUT_BYTES_PER_TOKEN = 4
"""Files of as many bytes for each token of a held-out document are long enough."""
SEPARATOR = "<|file|>"
SEPARATOR_ID = 0

# Words with their underscores, a line's end with the indentation behind it, single digits, runs of
# other signs.
_PIECES = r"\n+[ ]*|[ ]?[\p{L}_]+|\p{N}|[ ]?[^\s\p{L}\p{N}_]+|\s+"


class Document(NamedTuple):
    """A file: its name within the library, its text and its tokens (S,) int64."""

    name: str
    text: str
    tokens: Tensor


class Corpus(NamedTuple):
    """All that models are trained on and read.

    Attributes:
        tokenizer: byte-level BPE.
        training: (N,) int64, the files one after another, in an order without a meaning, a
            SEPARATOR_ID before each.
        starts: (F + 1,) int64, where each file begins with its separator, and N.
        held_out: the documents that are read, cut to `longest` tokens.
        ends_line: (V,) bool, the tokens that begin with the end of a line.
    """

    tokenizer: Tokenizer
    training: Tensor
    starts: Tensor
    held_out: list[Document]
    ends_line: Tensor


def corpus(folder: Path, scale: Scale) -> Corpus:
    """The corpus in a folder; made unless an earlier start has left it there."""
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            _write(temporary, scale)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with np.load(folder / "training.npz") as arrays:
        training, starts = (torch.from_numpy(arrays[name]) for name in ("tokens", "starts"))
    names = json.loads((folder / "held_out.json").read_text())
    held_out = [_document(tokenizer, name, scale.longest) for name in names]
    vocabulary = range(tokenizer.get_vocab_size())
    ends_line = torch.tensor([tokenizer.decode([n])[:1] == "\n" for n in vocabulary])
    return Corpus(tokenizer, training.long(), starts, held_out, ends_line)


def version(scale: Scale) -> str:
    """Of all that a figure rests on but the programs: the numbers of the study and the texts."""
    return _digest(json.dumps(scale.settings(), sort_keys=True) + _fingerprint())[:12]


def long_enough(scale: Scale) -> list[str]:
    """Names of the files that may be held out, in the order of `_digest`: no tests."""
    at_least = HELD_OUT_BYTES_PER_TOKEN * scale.longest
    return [
        name
        for name, size in _files()
        if size >= at_least and not {"test", "tests", "idle_test"} & set(Path(name).parts)
    ]


def _write(folder: Path, scale: Scale) -> None:
    held_out = long_enough(scale)[: scale.documents]
    if len(held_out) < scale.documents:
        raise ValueError(
            f"documents is {scale.documents}; only {len(held_out)} files of the standard library "
            f"have {scale.longest:,} tokens"
        )
    training = [name for name, _ in _files() if name not in held_out][: scale.files]
    texts = [_text(name) for name in training]
    tokenizer = _trained_tokenizer(texts, scale.vocabulary)
    tokenizer.save(str(folder / "tokenizer.json"))
    encoded = [[SEPARATOR_ID, *each.ids] for each in tokenizer.encode_batch_fast(texts)]
    starts = np.cumsum([0, *map(len, encoded)])
    tokens = np.concatenate([np.array(each, dtype=np.uint16) for each in encoded])
    np.savez(folder / "training.npz", tokens=tokens, starts=starts)
    (folder / "held_out.json").write_text(json.dumps(held_out))


def _trained_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _document(tokenizer: Tokenizer, name: str, longest: int) -> Document:
    text = _text(name)
    encoding = tokenizer.encode(text)
    if len(encoding.ids) < longest:
        raise ValueError(f"{name} has {len(encoding.ids):,} tokens; it must have {longest:,}")
    end = encoding.offsets[longest - 1][1]
    return Document(name, text[:end], torch.tensor(encoding.ids[:longest]))


@functools.cache
def _files() -> list[tuple[str, int]]:
    """Names and bytes of all that is used, in an order without a meaning: by digest."""
    found = []
    for path in _root().rglob("*.py"):
        name = path.relative_to(_root()).as_posix()
        size = path.stat().st_size
        is_left_out = bool(LEFT_OUT & set(path.parts)) or not MIN_BYTES <= size <= MAX_BYTES
        if not is_left_out and _is_utf8(path):
            found.append((name, size))
    return sorted(found, key=lambda each: _digest(each[0]))


def _is_utf8(path: Path) -> bool:
    """Some tests are of other encodings."""
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


@functools.cache
def _fingerprint() -> str:
    return _digest("".join(f"{name}\n{_text(name)}\n" for name, _ in _files()))


def _text(name: str) -> str:
    return (_root() / name).read_text(encoding="utf-8")


def _root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

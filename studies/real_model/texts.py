"""What the models train on and are read: Python's standard library, joined to long texts.

Its files are too short: the longest that is trained on has 61,000 tokens. So all training files, in
the order of their names, are one text, in which the files of a package stand together as they do in
a repository; samples are cut from it. The 16 held-out files are joined likewise, each of the
`documents` beginning with another of them and going on with the first after the last. No file is in
both.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from examples import standard_library
from lrk.atomic import write_text
from lrk.data.command import main as lrk_data
from lrk.recipe.prepared import is_prepared
from studies.real_model.product import call
from studies.real_model.scale import Scale

TRAINING = "training"
HELD_OUT = "held_out.jsonl"


def write_texts(folder: Path, scale: Scale, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write `TRAINING`, prepared by `lrk-data`, and `HELD_OUT`, unless they are there.

    Args:
        folder: of the study; it holds the tokenizer in `untouched`.

    Raises:
        ValueError: if the held-out files have fewer tokens than the target.
    """
    files = standard_library.held_out_documents()["text"][: scale.files]
    held_out = rotations(files, scale.documents)
    tokens = len(tokenizer(held_out[0]).input_ids)
    if tokens < scale.target:
        raise ValueError(
            f"--target is {scale.target}; the held-out files have {tokens:,} tokens, and it must "
            "be no more than that"
        )
    _write(folder / HELD_OUT, held_out)
    if is_prepared(folder / TRAINING):
        return
    files = standard_library.training_documents()["text"][: scale.files]
    _write(folder / f"{TRAINING}.jsonl", ["".join(files)])
    call(
        lrk_data,
        [
            "prepare",
            *("--data", str(folder / f"{TRAINING}.jsonl")),
            *("--tokenizer", str(folder / "untouched")),
            *("--output_dir", str(folder / TRAINING)),
        ],
    )


def fingerprint() -> str:
    """SHA-256 of all files, the first 16 digits: another Python has another library."""
    found = hashlib.sha256()
    for documents in (standard_library.held_out_documents(), standard_library.training_documents()):
        for text in documents["text"]:
            found.update(text.encode())
    return found.hexdigest()[:16]


def rotations(texts: Sequence[str], count: int) -> list[str]:
    """`count` texts: all of `texts`, the n-th beginning n / count of the way through them."""
    starts = (n * len(texts) // count for n in range(count))
    return ["".join([*texts[start:], *texts[:start]]) for start in starts]


def _write(path: Path, texts: Sequence[str]) -> None:
    write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))

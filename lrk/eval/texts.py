"""The texts that losses are computed on: the first tokens of the documents that are long enough."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lrk.recipe import load_documents


def load_texts(
    sources: Sequence[str],
    text_column: str,
    tokenizer: PreTrainedTokenizerBase,
    documents: int,
    length: int,
) -> list[Tensor]:
    """The first `length` tokens of the first `documents` documents that have as many.

    Special tokens that the tokenizer puts before a text count.

    Args:
        sources, text_column: see `lrk.recipe.load_documents`.

    Returns:
        Tensors (length,) int64; at least one, perhaps fewer than asked for.

    Raises:
        ValueError: if no document is long enough, or the sources cannot be read.
    """
    texts: list[Tensor] = []
    longest = seen = 0
    rows = load_documents(sources, text_column)
    if "text" not in rows.column_names:
        raise ValueError(f"data {', '.join(sources)} hold conversations; they must hold text")
    for row in rows:
        seen += 1
        ids = tokenizer(row["text"]).input_ids if row["text"] else []
        longest = max(longest, len(ids))
        if len(ids) >= length:
            texts.append(torch.tensor(ids[:length]))
        if len(texts) == documents:
            break
    if not texts:
        raise ValueError(
            f"none of the {seen:,} documents of data has {length:,} tokens; the longest has "
            f"{longest:,}"
        )
    return texts


def fingerprint(texts: Sequence[Tensor]) -> str:
    """Of all tokens."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.numpy().tobytes() + b"end")
    return digest.hexdigest()[:16]

"""Token ids: documents become `input_ids` and the lengths of their segments."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lrk.lock import in_turn
from lrk.recipe.conversations import render, trained_tokens
from lrk.recipe.documents import CONVERSATION
from lrk.recipe.fingerprint import code_hash, tokenizer_fingerprint
from lrk.recipe.rows import Document
from lrk.recipe.segments import SentenceEnds, segment_lengths, sentence_ends
from lrk.recipe.token_ids import encode
from lrk.sealed import digest

# Documents that are tokenized together, and so read ahead of the sample at hand.
BATCH_OF_DOCUMENTS = 16

FEATURES = Features({"input_ids": List(Value("int32")), "segment_lengths": List(Value("int32"))})
FEATURES_WITH_LABELS = Features(dict(FEATURES) | {"is_label": List(Value("bool"))})

Columns = dict[str, list[Any]]


def tokenize(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    num_proc: int | None = None,
    assistant_only: bool = True,
    split_special_tokens: bool = True,
) -> Dataset:
    """Tokenize documents and cut them into segments.

    Each document opens with the special tokens that the tokenizer itself adds and closes with its
    end-of-text token, if it has one. Where a chat template makes the text, it has all of these.
    Documents without text are left out.

    The result is kept in the cache of `datasets`. Of several processes that want the same one, such
    as those of a run on several GPUs, one makes it and the others wait for it, however long.

    Args:
        documents: data set with a column `text`, or `conversation` (as `load_documents` makes it),
            or `messages`, or `prompt` and `completion`.
        num_proc: worker processes; None works in this one.
        assistant_only: in messages, train on what the assistant says; in prompts, on completions.
        split_special_tokens: what reads like a special token, such as `<|endoftext|>`, is text.
            In what a chat template renders, it is one always.

    Returns:
        Data set with the columns `input_ids` (S,) and `segment_lengths` (N,), whose sum is S, and
        for conversations `is_label` (S,): whether the token is to be predicted.

    Raises:
        ValueError: if no document holds text, no token ends a sentence, or conversations cannot be
            rendered.
    """
    ends = sentence_ends(tokenizer)
    is_text = "text" in documents.column_names
    check_tokenizer(tokenizer, is_text)
    with _turn(documents, tokenizer):
        tokenized = documents.map(
            partial(
                _mapped,
                tokenizer=tokenizer,
                ends=ends,
                assistant_only=assistant_only,
                split_special_tokens=split_special_tokens,
                code=code_hash(),
            ),
            with_indices=True,
            batched=True,
            batch_size=BATCH_OF_DOCUMENTS,
            num_proc=num_proc,
            remove_columns=documents.column_names,
            features=FEATURES if is_text else FEATURES_WITH_LABELS,
            desc="Tokenizing",
        )
    if len(tokenized) == 0:
        raise ValueError(f"none of the {len(documents):,} documents holds text")
    return tokenized


def prompt_ids(prompt: str | None, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Token ids of a text that stands inside of samples, without special tokens; none for None."""
    return tuple(tokenizer.encode(prompt, add_special_tokens=False)) if prompt else ()


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, is_text: bool) -> None:
    """Refuse a tokenizer that cannot tell where in a conversation its tokens are."""
    if not is_text and not tokenizer.is_fast:
        raise ValueError(
            "the data hold conversations, and the tokenizer is a slow one that does not say where "
            "in the text its tokens are; take a fast tokenizer"
        )


def tokenized_rows(
    documents: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    ends: SentenceEnds,
    assistant_only: bool,
    split_special_tokens: bool,
    is_text: bool,
) -> Columns:
    """Columns of `tokenize` for some documents, less those without text.

    Raises:
        ValueError: naming the `origin` of a document that cannot be rendered.
    """
    if is_text:
        texts = [document.get("text") for document in documents]
        return _text_rows(texts, tokenizer, ends, split_special_tokens)
    return _conversation_rows(documents, tokenizer, ends, assistant_only, split_special_tokens)


def _turn(documents: Dataset, tokenizer: PreTrainedTokenizerBase) -> AbstractContextManager[None]:
    """Of several processes one tokenizes, and the others find its result in the cache, if any."""
    if not (documents.cache_files and datasets.is_caching_enabled()):
        return nullcontext()
    name = digest([documents._fingerprint, tokenizer_fingerprint(tokenizer)])[:16]
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "lrk"
    return in_turn(cache / name, "tokenizing the data")


def _mapped(batch: Columns, numbers: list[int], code: str, **options: Any) -> Columns:
    """Of a batch of a data set; `code` tells its cache what the result follows from."""
    rows = (dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True))
    documents = [
        Document(json.loads(row[CONVERSATION] or "{}") if CONVERSATION in row else row, origin)
        for row, origin in zip(rows, map("document {:,} of data".format, numbers), strict=True)
    ]
    return tokenized_rows(documents, is_text="text" in batch, **options)


def _text_rows(
    texts: list[str | None],
    tokenizer: PreTrainedTokenizerBase,
    ends: SentenceEnds,
    split_special_tokens: bool,
) -> Columns:
    eos = tokenizer.eos_token_id
    whole = [text for text in texts if text and not text.isspace()]
    encoded = [ids for ids, _ in encode(whole, tokenizer, split_special_tokens)]
    closed = [ids if eos is None or ids[-1] == eos else _append(ids, eos) for ids in encoded]
    return {
        "input_ids": closed,
        "segment_lengths": [segment_lengths(ids, ends) for ids in closed],
    }


def _conversation_rows(
    documents: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    ends: SentenceEnds,
    assistant_only: bool,
    split_special_tokens: bool,
) -> Columns:
    columns: Columns = {name: [] for name in FEATURES_WITH_LABELS}
    eos = tokenizer.eos_token_id
    for document in documents:
        if not any(document.values()):
            continue
        try:
            text, spans, templated = render(document, tokenizer, assistant_only)
        except ValueError as error:
            raise ValueError(f"{getattr(document, 'origin', 'a conversation')}: {error}") from error
        if not text or text.isspace():
            continue
        (encoded,) = encode(
            [text],
            tokenizer,
            split_special_tokens and not templated,
            add_special_tokens=not templated,
            offsets=True,
        )
        ids = encoded.ids
        assert encoded.offsets is not None
        is_label = trained_tokens(encoded.offsets, spans)
        if not templated and eos is not None and ids[-1] != eos:
            ids, is_label = _append(ids, eos), _append(is_label, True)
        columns["input_ids"].append(ids)
        columns["segment_lengths"].append(segment_lengths(ids, ends))
        columns["is_label"].append(is_label)
    return columns


def _append(values: NDArray, value: int | bool) -> NDArray:
    return np.concatenate([values, np.array([value], values.dtype)])

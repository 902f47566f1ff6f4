"""Token ids: documents become `input_ids` and the lengths of their segments."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from lrk.recipe.conversations import render, trained_tokens
from lrk.recipe.segments import SentenceEnds, segment_lengths, sentence_ends

FEATURES = Features({"input_ids": List(Value("int32")), "segment_lengths": List(Value("int32"))})
FEATURES_WITH_LABELS = Features(dict(FEATURES) | {"is_label": List(Value("bool"))})

Columns = dict[str, list[Any]]


def tokenize(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    num_proc: int | None = None,
    assistant_only: bool = True,
) -> Dataset:
    """Tokenize documents and cut them into segments.

    Each document opens with the special tokens that the tokenizer itself adds and closes with its
    end-of-text token, if it has one. Where a chat template makes the text, it has all of these.
    Documents without text are left out.

    Args:
        documents: data set with a column `text`, or `messages`, or `prompt` and `completion`.
        num_proc: worker processes; None works in this one.
        assistant_only: in messages, train on what the assistant says; in prompts, on completions.

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
    tokenized = documents.map(
        partial(tokenized_rows, tokenizer=tokenizer, ends=ends, assistant_only=assistant_only),
        batched=True,
        batch_size=100,
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
    batch: Columns, tokenizer: PreTrainedTokenizerBase, ends: SentenceEnds, assistant_only: bool
) -> Columns:
    """Columns of `tokenize` for some documents, less those without text."""
    if "text" in batch:
        return _text_rows(batch["text"], tokenizer, ends)
    examples = (dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True))
    return _conversation_rows(examples, tokenizer, ends, assistant_only)


def _text_rows(
    texts: list[str | None], tokenizer: PreTrainedTokenizerBase, ends: SentenceEnds
) -> Columns:
    eos = tokenizer.eos_token_id
    texts = [text for text in texts if text and not text.isspace()]
    if not texts:
        return {"input_ids": [], "segment_lengths": []}
    token_ids = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
    closed = [ids if eos is None or ids[-1] == eos else [*ids, eos] for ids in token_ids]
    return {
        "input_ids": closed,
        "segment_lengths": [segment_lengths(ids, ends) for ids in closed],
    }


def _conversation_rows(
    examples: Iterator[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    ends: SentenceEnds,
    assistant_only: bool,
) -> Columns:
    columns: Columns = {name: [] for name in FEATURES_WITH_LABELS}
    eos = tokenizer.eos_token_id
    for example in examples:
        text, spans, templated = render(example, tokenizer, assistant_only)
        if not text or text.isspace():
            continue
        encoded = tokenizer(
            text,
            add_special_tokens=not templated,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids = list(encoded["input_ids"])
        is_label = trained_tokens(encoded["offset_mapping"], spans).tolist()
        if not templated and eos is not None and ids[-1] != eos:
            ids.append(eos)
            is_label.append(True)
        columns["input_ids"].append(ids)
        columns["segment_lengths"].append(segment_lengths(ids, ends))
        columns["is_label"].append(is_label)
    return columns

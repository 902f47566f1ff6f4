"""Token ids: documents become `input_ids` and the lengths of their segments."""

from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from lrk.recipe.segments import segment_lengths, sentence_ends

FEATURES = Features({"input_ids": List(Value("int32")), "segment_lengths": List(Value("int32"))})


def tokenize(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, num_proc: int | None = None
) -> Dataset:
    """Tokenize documents and cut them into segments.

    Each document opens with the special tokens that the tokenizer itself adds and closes with its
    end-of-text token, if it has one. Documents without text are left out.

    Args:
        documents: data set with a column `text`.
        num_proc: worker processes; None works in this one.

    Returns:
        Data set with the columns `input_ids` (S,) and `segment_lengths` (N,), whose sum is S.

    Raises:
        ValueError: if no document holds text, or no token ends a sentence.
    """
    ends = sentence_ends(tokenizer)
    eos = tokenizer.eos_token_id

    def rows(batch: dict[str, list[str | None]]) -> dict[str, list[Any]]:
        texts = [text for text in batch["text"] if text and not text.isspace()]
        if not texts:
            return {"input_ids": [], "segment_lengths": []}
        token_ids = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
        closed = [ids if eos is None or ids[-1] == eos else [*ids, eos] for ids in token_ids]
        return {
            "input_ids": closed,
            "segment_lengths": [segment_lengths(ids, ends) for ids in closed],
        }

    tokenized = documents.map(
        rows,
        batched=True,
        batch_size=100,
        num_proc=num_proc,
        remove_columns=documents.column_names,
        features=FEATURES,
        desc="Tokenizing",
    )
    if len(tokenized) == 0:
        raise ValueError(f"none of the {len(documents):,} documents holds text")
    return tokenized

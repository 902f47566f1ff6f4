"""What tells one tokenizer, or one set of documents, from another: a hash of what it does or holds,
not of how or where it was stored."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

# Words, numbers, indentation, code, accents, Chinese, an emoji: rules that differ between
# tokenizers of one vocabulary (merges, normalisation, the splitting of digits) show here.
_PROBE = (
    "The pass closed in 1987; 3.14 of 2,000 crossed it.\n\n    def café(x_1):\n\treturn os.path\n"
    "don't STOP  山口关闭了。 naïve 🙂"
)
_TRAINED = {"input_ids", "is_label", "segment_lengths"}
# Documents that are read at once.
_BATCH = 256


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256, in hexadecimal, of the vocabulary, the end-of-text token and a tokenized probe.

    Equal for the same tokenizer loaded from another place, by another release, or as the fast or
    slow implementation of it, as long as they make the same ids.
    """
    content = [
        sorted(tokenizer.get_vocab().items()),
        tokenizer.eos_token_id,
        list(tokenizer(_PROBE)["input_ids"]),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def code_hash() -> str:
    """SHA-256, in hexadecimal, of the code between data files and token ids.

    It is part of the names under which results are kept, so that another release does not take
    those of this one for its own.
    """
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def documents_fingerprint(documents: Dataset) -> str:
    """SHA-256, in hexadecimal, of tokens, segments and labels of every document, in order.

    What prepared folders note beside these, such as where a document came from, trains nothing. It
    reads them all, at some 1.5 GiB a second.
    """
    digest = hashlib.sha256()
    for table in documents.with_format("arrow").iter(_BATCH):
        for name in sorted(_TRAINED & set(table.column_names)):
            column = table[name].combine_chunks()
            digest.update(name.encode())
            if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
                lengths = pyarrow.compute.list_value_length(column)
                digest.update(lengths.to_numpy(zero_copy_only=False).tobytes())
                column = column.flatten()
            digest.update(column.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()

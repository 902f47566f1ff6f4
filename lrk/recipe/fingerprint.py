"""What tells one tokenizer from another: a hash of what it does, not of how it was stored."""

import hashlib
import json

from transformers import PreTrainedTokenizerBase

# Words, numbers, indentation, code, accents, Chinese, an emoji: rules that differ between
# tokenizers of one vocabulary (merges, normalisation, the splitting of digits) show here.
_PROBE = (
    "The pass closed in 1987; 3.14 of 2,000 crossed it.\n\n    def café(x_1):\n\treturn os.path\n"
    "don't STOP  山口关闭了。 naïve 🙂"
)


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

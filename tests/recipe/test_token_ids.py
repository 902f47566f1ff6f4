"""Long texts in pieces have the ids of the whole text."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lrk.recipe import token_ids
from lrk.recipe.token_ids import encode
from studies.tiny import train_tokenizer

RANDOM = random.Random(0)
CODE = "".join(path.read_text(encoding="utf-8") for path in sorted(Path("lrk").glob("**/*.py")))
TEXTS = {
    "code": CODE[:20_000],
    "chinese": "".join(chr(RANDOM.randint(0x4E00, 0x9FA5)) for _ in range(9_000)),
    "base64": "".join(RANDOM.choices("ABCDEFabcdef0123456789+/", k=9_000)),
    "digits": "".join(RANDOM.choices("0123456789", k=9_000)),
    "one letter": "x" * 8_000,
    "spaces and a word": CODE[:3_000] + " " * 5_000 + "word\r\n" + "\n" * 4_000 + "end",
    "any characters": "".join(
        chr(RANDOM.choice([RANDOM.randint(1, 0x7F), RANDOM.randint(0x80, 0xD7FF)]))
        for _ in range(9_000)
    ),
    "special": "The <end> of it.<end> " * 500,
}


def sentencepiece_like(prepend: str) -> PreTrainedTokenizerFast:
    """The kind of Llama 2 and Mistral, whose pieces begin with a space of their own."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prepend == "normalizer":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Metaspace()
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "<end>", *byte_tokens],
        show_progress=False,
        max_token_length=16,
    )
    tokenizer.train_from_iterator(CODE[:20_000].split("\n"), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <end>", special_tokens=[("<s>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<end>", unk_token="<unk>"
    )


def digits_from_the_right() -> PreTrainedTokenizerFast:
    """Groups of three digits that are counted from the end of a number."""
    tokenizer = train_tokenizer([CODE[:20_000]], 500)
    split = pre_tokenizers.Split(r"\d{1,3}(?=(?:\d{3})*\b)", "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return tokenizer


TOKENIZERS = {
    "byte-level": lambda: train_tokenizer([CODE[:20_000]], 500),
    "metaspace always": lambda: sentencepiece_like("always"),
    "metaspace first": lambda: sentencepiece_like("first"),
    "one word": lambda: sentencepiece_like("normalizer"),
    "digits from the right": digits_from_the_right,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request) -> PreTrainedTokenizerBase:
    return TOKENIZERS[request.param]()


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("split", [True, False])
def test_ids_and_offsets_are_those_of_the_whole_text(tokenizer, monkeypatch, name, split):
    monkeypatch.setattr(token_ids, "PIECE", 1024)
    monkeypatch.setattr(token_ids, "OVERLAP", 128)
    text = TEXTS[name]
    whole = tokenizer(text, return_offsets_mapping=True, split_special_tokens=split)
    short, long = encode(["Short.", text], tokenizer, split, offsets=True)
    np.testing.assert_array_equal(long.ids, whole["input_ids"])
    np.testing.assert_array_equal(long.offsets, whole["offset_mapping"])
    np.testing.assert_array_equal(short.ids, tokenizer("Short.")["input_ids"])
    assert long.ids.dtype == np.int32
    (bare,) = encode([text], tokenizer, split, add_special_tokens=False)
    assert bare.offsets is None
    whole = tokenizer(text, add_special_tokens=False, split_special_tokens=split)
    np.testing.assert_array_equal(bare.ids, whole["input_ids"])


def test_pieces_that_agree_nowhere_are_one(monkeypatch):
    """Runs of a letter whose tokens begin elsewhere in each piece, with words around them."""
    monkeypatch.setattr(token_ids, "PIECE", 1021)
    monkeypatch.setattr(token_ids, "OVERLAP", 128)
    tokenizer = train_tokenizer(["x" * 64 + " " + CODE[:9_000]] * 3, 500)
    text = CODE[:3_000] + "x" * 3_000 + CODE[3_000:9_000]
    (made,) = encode([text], tokenizer, True)
    np.testing.assert_array_equal(made.ids, tokenizer(text)["input_ids"])


MEMORY = """
import resource, sys
from lrk.recipe.token_ids import encode
from studies.tiny import train_tokenizer, prose
text = prose(300_000, 0)[:8_000_000]
tokenizer = train_tokenizer([prose(200, 0)], 320)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(made,) = encode([text], tokenizer, True)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 / len(text))
"""


def test_memory_is_a_few_times_the_text():
    """In bytes a character; 135 without pieces."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 25, done.stdout

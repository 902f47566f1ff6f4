import pickle
from collections.abc import Iterator
from itertools import count, islice
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lrk.recipe import Sample, Samples, SampleStream, Selection, tokenize


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Documents of 1 to about 60 tokens."""
    sentences = ["The pass is closed. ", "Nobody crossed it in winter! ", "Who would? "]
    return [
        "".join(sentences[(number + part) % 3] for part in range(number * 7 % 5 + number % 2))
        for number in range(40)
    ]


class Read:
    """Documents that count how many of them were read."""

    def __init__(self, texts: list[str], repeat: int = 1) -> None:
        self.texts, self.repeat, self.count = texts, repeat, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _ in range(self.repeat):
            for text in self.texts:
                self.count += 1
                yield {"text": text}


def content(sample: Sample) -> tuple[list[int], list[list[int]]]:
    return sample["input_ids"].tolist(), [part.tolist() for part in sample["segment_lengths"]]


def rows(texts: list[str]) -> list[dict[str, Any]]:
    return [{"text": text} for text in texts]


def test_how_documents_are_cut():
    """One token a letter, `#` ends a document, and a sentence ends with an ideographic stop."""
    tokenizer = Tokenizer(
        models.WordLevel({letter: i for i, letter in enumerate("#。abcdefghijklm")})
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[^#]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    letters = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="#")
    documents = ["abcd。e。f", "gh", "i", "j。k", "lm"]
    samples = list(SampleStream(rows(documents), letters, 4).one_pass(count()))
    # Of the documents as they are read, with what each leaves: # | gh# | i# | nothing | lm#
    assert [letters.decode(sample["input_ids"]) for sample in samples] == [
        "abcd",
        "。e。f",
        "#gh#",
        "j。k#",
        "i#lm",
    ]
    segments = [content(sample)[1] for sample in samples]
    assert segments == [[[4]], [[1, 2, 1]], [[1], [3]], [[2, 2]], [[2], [2]]]
    assert [sample["index"] for sample in samples] == [0, 1, 2, 3, 4]
    assert samples[0]["input_ids"].dtype == torch.int64


@pytest.mark.parametrize("selection", [None, Selection("random", 30, seed=4)], ids=["all", "kept"])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("length", [2, 7, 16, 25])
def test_one_pass_is_what_a_prepared_data_set_holds(byte_tokenizer, texts, length, pack, selection):
    """Also documents without text, which both leave out."""
    assert "" in texts
    documents = datasets.Dataset.from_list(rows(texts))
    prepared = Samples(tokenize(documents, byte_tokenizer), length, pack, selection)
    stream = SampleStream(rows(texts), byte_tokenizer, length, pack, selection=selection)
    streamed = list(stream.one_pass(count()))
    assert sorted(map(content, streamed)) == sorted(map(content, prepared))
    assert [sample["index"] for sample in streamed] == list(range(len(prepared)))


def test_conversations_are_streamed_too(byte_tokenizer):
    pairs = [
        {"prompt": f"Who crossed it in year {number}? ", "completion": "Nobody. " * (number % 4)}
        for number in range(20)
    ]
    prepared = Samples(tokenize(datasets.Dataset.from_list(pairs), byte_tokenizer), 12)
    stream = SampleStream(pairs, byte_tokenizer, 12)

    def labelled(sample: Sample) -> tuple[Any, ...]:
        return (*content(sample), sample["is_label"].tolist())

    assert sorted(map(labelled, stream.one_pass(count()))) == sorted(map(labelled, prepared))


def test_documents_are_read_only_as_far_as_needed(byte_tokenizer, texts):
    """A corpus of 40,000 documents; 50 samples of 64 tokens need fewer than 200 of them."""
    documents = Read(texts, repeat=1000)
    samples = iter(SampleStream(documents, byte_tokenizer, 64, shuffle_buffer=8))
    tokens_of = {text: len(byte_tokenizer(text)["input_ids"]) + 1 if text else 0 for text in texts}
    for given_out in range(1, 51):
        next(samples)
        read = sum(tokens_of[texts[number % 40]] for number in range(documents.count - 16))
        assert read < (given_out + 8 + 1) * 64
    assert documents.count < 400


def test_no_long_document_outlives_its_samples(byte_tokenizer):
    """What waits to be packed is a copy: a tail of one token must not hold its document."""
    document = "winter " * 3000
    stream = SampleStream(rows([document]), byte_tokenizer, 1000)
    sample = next(stream.one_pass(count()))
    assert sample["input_ids"].untyped_storage().nbytes() == 8 * 1000


def test_passes_follow_one_another_and_numbers_run_on(byte_tokenizer, texts):
    stream = SampleStream(rows(texts), byte_tokenizer, 16)
    one = [content(sample) for sample in stream.one_pass(count())]
    samples = list(islice(stream, 2 * len(one) + 3))
    assert [sample["index"] for sample in samples] == list(range(len(samples)))
    assert [content(sample) for sample in samples] == [*one, *one, *one[:3]]


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_shuffling_gives_every_sample_once_a_pass_and_follows_from_the_seed(
    byte_tokenizer, texts, size
):
    def indices(seed: int, passes: int = 2) -> list[int]:
        stream = SampleStream(rows(texts), byte_tokenizer, 16, shuffle_buffer=size, seed=seed)
        number = sum(1 for _ in stream.one_pass(count()))
        return [sample["index"] for sample in islice(stream, passes * number)]

    drawn = indices(0)
    half = len(drawn) // 2
    assert sorted(drawn[:half]) == list(range(half))
    assert sorted(drawn[half:]) == list(range(half, 2 * half))
    assert indices(0) == drawn
    for place, index in enumerate(drawn[:half]):
        assert index <= place + size, "a sample cannot come before it was read"
    if size > 1:
        assert drawn != sorted(drawn)
        assert indices(1) != drawn
        assert [index + half for index in drawn[:half]] != drawn[half:], "each pass its own order"


def test_a_worker_reads_the_same_samples_and_two_are_refused(byte_tokenizer, texts, monkeypatch):
    stream = SampleStream(rows(texts), byte_tokenizer, 16, shuffle_buffer=4)

    def batches(workers: int) -> list[Any]:
        loader = torch.utils.data.DataLoader(
            stream, batch_size=3, num_workers=workers, collate_fn=list
        )
        return [list(map(content, batch)) for batch in islice(loader, 12)]

    assert batches(1) == batches(0)
    two = SimpleNamespace(num_workers=2)
    monkeypatch.setattr("lrk.recipe.sample_stream.get_worker_info", lambda: two)
    with pytest.raises(ValueError, match="read by 2 workers; it must be one or none"):
        next(iter(stream))


def test_a_stream_can_be_pickled(byte_tokenizer, texts):
    """As a worker needs that is not forked."""
    stream = SampleStream(rows(texts), byte_tokenizer, 16)
    copy = pickle.loads(pickle.dumps(stream))
    assert content(next(iter(copy))) == content(next(iter(stream)))


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["The end."], {}, r"the 1 documents hold \d+ tokens together, but one sample .* 100"),
        ([], {}, "the 0 documents hold 0 tokens"),
        (["The end."] * 90, {"pack": False}, "longest of 90 documents has .* train_length 100"),
        (["The end."], {"length": 1}, "length is 1; a sample needs at least 2 tokens"),
        (["The end."], {"shuffle_buffer": -1}, "shuffle_buffer is -1; it must be 0 or positive"),
    ],
)
def test_what_makes_no_stream(byte_tokenizer, texts, options, message):
    with pytest.raises(ValueError, match=message):
        next(iter(SampleStream(rows(texts), byte_tokenizer, **{"length": 100} | options)))

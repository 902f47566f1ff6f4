import json
import resource
from itertools import count
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from lrk.recipe import (
    Collator,
    Placement,
    Samples,
    SampleStream,
    load_documents,
    stream_documents,
    tokenize,
)
from lrk.recipe.conversations import render, trained_tokens

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}"
    "{% endfor %}"
)
TALK = [
    {"role": "user", "content": "Is the pass closed?"},
    {"role": "assistant", "content": "It is."},
    {"role": "user", "content": "Who crossed it?"},
    {"role": "assistant", "content": "Nobody did."},
]


@pytest.fixture
def chat_tokenizer(byte_tokenizer):
    byte_tokenizer.chat_template = TEMPLATE
    yield byte_tokenizer
    byte_tokenizer.chat_template = None


def trained_text(tokenized, tokenizer) -> str:
    (row,) = list(tokenized)
    assert len(row["is_label"]) == len(row["input_ids"]) == sum(row["segment_lengths"])
    kept = [i for i, label in zip(row["input_ids"], row["is_label"], strict=True) if label]
    return tokenizer.decode(kept)


@pytest.mark.parametrize(
    ("row", "assistant_only", "expected"),
    [
        ({"messages": TALK}, True, "It is.<end>\nNobody did.<end>\n"),
        ({"messages": TALK[1:]}, True, "[assistant]\nIt is.<end>\nNobody did.<end>\n"),
        ({"prompt": TALK[:3], "completion": TALK[3:]}, True, "Nobody did.<end>\n"),
        ({"prompt": "Is it?", "completion": " It is."}, True, " It is.<end>"),
        ({"prompt": "Is it?", "completion": " It is."}, False, "Is it? It is.<end>"),
        (
            {"messages": TALK[:2]},
            False,
            "[user]\nIs the pass closed?<end>\n[assistant]\nIt is.<end>\n",
        ),
    ],
    ids=["talk", "assistant first", "completion", "prompt", "all of a prompt", "all of a talk"],
)
def test_what_is_trained_on(chat_tokenizer, row, assistant_only, expected):
    documents = Dataset.from_list([row])
    tokenized = tokenize(documents, chat_tokenizer, assistant_only=assistant_only)
    assert trained_text(tokenized, chat_tokenizer) == expected


def test_the_mask_reaches_the_labels_through_packing(chat_tokenizer):
    documents = Dataset.from_list([{"prompt": "One two three. ", "completion": "Four."}] * 9)
    tokenized = tokenize(documents, chat_tokenizer)
    samples = Samples(tokenized, 7)
    assert samples.num_packed > 0
    batch = Collator(Placement(4096))(list(samples))
    starts = batch["cu_seq_lens_q"][:-1].long()
    first = torch.zeros(batch["labels"].numel(), dtype=torch.bool)
    first[starts] = True
    is_label = torch.cat([sample["is_label"] for sample in samples]) & ~first
    labels, ids = batch["labels"].flatten(), batch["input_ids"].flatten()
    assert 0 < is_label.sum() < is_label.numel()
    assert torch.equal(labels[is_label], ids[is_label])
    assert (labels[~is_label] == -100).all()


def test_conversations_are_found_by_their_columns(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, row in (
        ("chat", {"messages": TALK, "id": 1}),
        ("pairs", {"prompt": "a", "completion": "b", "id": 1}),
    ):
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    both = load_documents([str(folder / "chat.jsonl"), str(folder / "pairs.jsonl")])
    assert both.column_names == ["conversation"]
    assert [json.loads(row) for row in both["conversation"]] == [
        {"messages": TALK},
        {"prompt": "a", "completion": "b"},
    ]


@pytest.mark.parametrize(
    ("row", "template", "message"),
    [
        ({"messages": TALK}, None, "the tokenizer has no chat template"),
        ({"messages": TALK}, FORGETFUL, "renders the beginning of a conversation otherwise"),
        ({"messages": []}, TEMPLATE, "at least one {role, content}"),
        ({"messages": [{"content": "x"}]}, TEMPLATE, "at least one {role, content}"),
        ({"prompt": "a", "completion": TALK}, TEMPLATE, "must both be text, or both lists"),
        ({"prompt": None, "completion": None}, TEMPLATE, "must both be text, or both lists"),
    ],
)
def test_rows_that_cannot_be_rendered(chat_tokenizer, row, template, message):
    chat_tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        render(row, chat_tokenizer, assistant_only=True)


def test_a_token_that_reaches_into_a_span_is_trained_on():
    offsets = [(0, 2), (2, 5), (5, 5), (5, 9), (9, 10)]
    assert trained_tokens(offsets, [(4, 6)]).tolist() == [False, True, True, True, False]
    assert trained_tokens([], [(4, 6)]).tolist() == []


RAISES = "{% if messages[0].content == 'no' %}{{ raise_exception('not this') }}{% endif %}talk"


def test_a_template_that_raises_names_the_row(chat_tokenizer, tmp_path):
    chat_tokenizer.chat_template = RAISES
    path = tmp_path / "chat.jsonl"
    rows = [[{"role": "user", "content": text}] for text in ("yes", "no", "yes")]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    reason = r"the tokenizer's chat template cannot render it \(TemplateError: not this\)"
    with pytest.raises(ValueError, match=f"document 1 of data: {reason}"):
        tokenize(load_documents([str(path)]), chat_tokenizer)
    stream = SampleStream(stream_documents([str(path)]), chat_tokenizer, 2)
    with pytest.raises(ValueError, match=rf"line 2 of data file '.*chat\.jsonl': {reason}"):
        next(stream.one_pass(count()))


@pytest.mark.parametrize("empty", [None, []])
def test_rows_without_messages_are_left_out(chat_tokenizer, tmp_path, empty):
    (tmp_path / "chat.jsonl").write_text(
        "".join(json.dumps({"messages": row}) + "\n" for row in (TALK, empty, TALK))
    )
    documents = load_documents([str(tmp_path / "chat.jsonl")])
    assert len(documents) == 3
    assert len(tokenize(documents, chat_tokenizer)) == 2


def test_special_tokens_of_a_template_are_tokens_and_those_of_prompts_text(chat_tokenizer):
    end = chat_tokenizer.eos_token_id
    for row, expected in (({"messages": TALK}, 4), ({"prompt": "a<end>", "completion": "b"}, 1)):
        (made,) = tokenize(Dataset.from_list([row]), chat_tokenizer)
        assert made["input_ids"].count(end) == expected


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * SIZE }}",
        "{{ 'x'.ljust(SIZE) }}",
        "{{ '%*s' % (SIZE, 'x') }}",
        "{% set s = namespace(x='xxxxxxxx') %}{% for _ in range(40) %}{% set s.x = s.x ~ s.x %}"
        "{% endfor %}{{ s.x }}",
        "{% for _ in range(99999) %}{% for _ in range(99999) %}{{ 'x' * 10000 }}{% endfor %}"
        "{% endfor %}",
    ],
)
def test_a_template_cannot_fill_the_memory(chat_tokenizer, monkeypatch, template):
    monkeypatch.setattr("lrk.recipe.conversations.TEMPLATE_MEMORY", 2**28)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    chat_tokenizer.chat_template = template.replace("SIZE", "messages[0].size")
    row = {"messages": [{"role": "user", "content": "Who?", "size": 17 * 10**9}]}
    with pytest.raises(ValueError, match=r"chat template cannot render it \(MemoryError"):
        render(row, chat_tokenizer, assistant_only=False)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    chat_tokenizer.chat_template = TEMPLATE
    assert render({"messages": TALK}, chat_tokenizer, assistant_only=True).spans

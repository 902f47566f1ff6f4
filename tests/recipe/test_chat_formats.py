"""ShareGPT's and Alpaca's rows are read as the messages that they stand for."""

import json

import pytest
from datasets import Dataset

from lrk.recipe import load_documents, stream_documents, tokenize

TURNS = [{"from": "human", "value": "Who crossed it?"}, {"from": "gpt", "value": "Nobody did."}]
ASKED = {"role": "user", "content": "Who crossed it?"}
MESSAGES = [ASKED, {"role": "assistant", "content": "Nobody did."}]
SYSTEM = {"role": "system", "content": "Be short."}
ALPACA = {"instruction": "Who crossed it?", "output": "Nobody did."}
TEMPLATE = "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}\n{% endfor %}"


def read(folder, rows, kind):
    """The conversations of a file, prepared, which are those that are streamed."""
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        Dataset.from_list(rows).to_parquet(path)
    streamed = list(stream_documents([str(path)]))
    loaded = load_documents([str(path)])["conversation"][:]
    assert [json.loads(row) for row in loaded] == streamed
    return streamed


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"conversations": TURNS}, MESSAGES),
        ({"conversations": TURNS, "system": "Be short."}, [SYSTEM, *MESSAGES]),
        ({"conversations": [{"from": "system", "value": "Be short."}]}, [SYSTEM]),
        ({"conversations": MESSAGES, "system": ""}, MESSAGES),
        (ALPACA, MESSAGES),
        (ALPACA | {"input": ""}, MESSAGES),
        (ALPACA | {"input": None, "system": "Be short."}, [SYSTEM, *MESSAGES]),
        (
            ALPACA | {"input": "The pass."},
            [ASKED | {"content": "Who crossed it?\n\nThe pass."}, MESSAGES[1]],
        ),
    ],
)
def test_rows_become_messages(tmp_path, kind, row, messages):
    assert read(tmp_path, [row | {"id": 7}], kind) == [{"messages": messages}]


def test_the_answer_alone_is_trained_on(tmp_path, byte_tokenizer):
    (tmp_path / "a.jsonl").write_text(json.dumps(ALPACA) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"conversations": TURNS}) + "\n")
    byte_tokenizer.chat_template = TEMPLATE
    try:
        first, second = tokenize(load_documents([str(tmp_path)]), byte_tokenizer)
    finally:
        byte_tokenizer.chat_template = None
    assert first == second
    kept = [i for i, label in zip(first["input_ids"], first["is_label"], strict=True) if label]
    assert byte_tokenizer.decode(kept).endswith("Nobody did.\n")
    assert "Who" not in byte_tokenizer.decode(kept)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": "Who?"}, "conversations must be a list of {from, value}"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "is from 'narrator'; it must be"),
        ({"conversations": [{"value": "x"}]}, "a turn of conversations is from None"),
        ({"conversations": [{"from": "gpt", "value": 7}]}, "turn of conversations is 7; it must"),
        (ALPACA | {"output": ["x"]}, r"output is \['x'\]; it must be text"),
        (ALPACA | {"input": 3}, "input is 3; it must be text"),
        ({"instruction": "x"}, "or the rows have messages, or prompt and completion, or conversa"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message) as error:
        load_documents([str(tmp_path / "a.jsonl")])
    assert "a.jsonl" in str(error.value)

import copy
import json
import re

import pytest

from lrk.eval.fitting import Trial
from lrk.eval.question_answering import question_answering, read_hotpotqa, read_squad

SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": f"Article {article}, part {part}.",
                    "qas": [
                        {
                            "question": f"Which is {article}.{part}?",
                            "answers": [{"text": "this"}, {"text": "that"}],
                            "is_impossible": False,
                        },
                        {"question": "None?", "answers": [], "is_impossible": True},
                    ],
                }
                for part in range(3)
            ]
        }
        for article in range(4)
    ]
}
HOTPOT = [
    {
        "question": "Who?",
        "answer": "Ada",
        "context": [["Title", ["One. ", "Two."]], ["Other", ["Three."]]],
    },
    {"question": "When?", "answer": "1815", "context": [["Third", ["Four."]]]},
]


@pytest.fixture
def write(tmp_path):
    def to_file(content: object) -> str:
        path = tmp_path / "data.json"
        path.write_text(json.dumps(content))
        return path

    return to_file


def documents(prompt) -> list[str]:
    return re.findall(r"^Document \d+:\n(.*)$", prompt.text, re.MULTILINE)


def test_squad_takes_the_article_first_and_then_others(write):
    data = read_squad(write(SQUAD))
    assert len(data.questions) == 12
    draw = question_answering(data)
    few, some, most, more = (
        set(documents(draw.prompt(Trial(0, "qa_1", 0, 4), size))) for size in (1, 3, 5, 40)
    )
    own = {f"Article 1, part {part}." for part in range(3)}
    assert few == {"Article 1, part 1."}
    assert some == own
    assert len(most) == 5
    assert own < most
    assert len(more) == 12


def test_hotpotqa_always_has_its_own_documents(write):
    data = read_hotpotqa(write(HOTPOT))
    prompt = question_answering(data).prompt(Trial(0, "qa_2", 0, 0), 1)
    assert prompt.references == ("Ada",)
    assert sorted(documents(prompt)) == ["Other", "Title"]
    assert "Title\nOne. Two." in prompt.text
    assert prompt.text.endswith("\n\nQuestion: Who?")
    assert prompt.answer_prefix == " Answer:"


@pytest.mark.parametrize("read", [read_squad, read_hotpotqa])
def test_another_format_is_refused(write, read, tmp_path):
    with pytest.raises(ValueError, match="is not in the format of"):
        read(write([{"question": "Who?"}]))
    with pytest.raises(ValueError, match="does not exist"):
        read(tmp_path / "absent.json")
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read(tmp_path / "data.json")


def changed(content, path, value):
    copied = copy.deepcopy(content)
    *parents, last = path
    place = copied
    for step in parents:
        place = place[step]
    place[last] = value
    return copied


SQUAD_QUESTION = ("data", 0, "paragraphs", 0, "qas", 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("data",), None),
        (("data", 0, "paragraphs", 0, "context"), 3),
        ((*SQUAD_QUESTION, "question"), ["Which?"]),
        ((*SQUAD_QUESTION, "question"), "half \ud800 a pair"),
        ((*SQUAD_QUESTION, "answers"), "this"),
        ((*SQUAD_QUESTION, "answers", 0, "text"), 7),
    ],
)
def test_squad_with_a_value_of_another_type(tmp_path, path, value):
    file = tmp_path / "squad.json"
    file.write_text(json.dumps(changed(SQUAD, path, value)))
    with pytest.raises(ValueError, match=r"squad '.*squad.json' is not in the format of SQuAD"):
        read_squad(file)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((0, "question"), None),
        ((0, "answer"), 1815),
        ((0, "context"), ["ab", "cd"]),
        ((0, "context", 0, 1), "One."),
        ((0, "context", 0, 0), 7),
        ((0, "context", 0, 1), [None]),
        ((0, "context"), []),
    ],
)
def test_hotpotqa_with_a_value_of_another_type(tmp_path, path, value):
    file = tmp_path / "hotpot.json"
    file.write_text(json.dumps(changed(HOTPOT, path, value)))
    with pytest.raises(ValueError, match=r"hotpotqa '.*hotpot.json' is not in the format of Hot"):
        read_hotpotqa(file)


def test_an_empty_answer_is_refused_since_every_text_holds_it(tmp_path):
    file = tmp_path / "squad.json"
    file.write_text(json.dumps(changed(SQUAD, (*SQUAD_QUESTION, "answers", 0, "text"), "")))
    with pytest.raises(ValueError, match=r"squad.json' has an empty answer to 'Which is 0.0.'"):
        read_squad(file)

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

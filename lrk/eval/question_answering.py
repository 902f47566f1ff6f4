"""RULER's question answering, `qa_1` and `qa_2` (arXiv 2404.06654, section 3).

Golden paragraphs of SQuAD or HotpotQA among paragraphs of other questions. The data sets are the
user's: `dev-v2.0.json` of SQuAD and `hotpot_dev_distractor_v1.json` of HotpotQA, as published. The
wording is RULER's, in NVIDIA/RULER, `scripts/data/synthetic/constants.py` and `qa.py` (Apache-2.0).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrk.eval.fitting import Draw, Trial
from lrk.eval.json_file import read_json, text_of
from lrk.eval.prompt import Prompt

MAX_NEW_TOKENS = 32

_INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words."
)


@dataclass(frozen=True)
class Question:
    """A question with the numbers of its documents.

    Attributes:
        text: the question.
        answers: each of them is right.
        documents: needed for the answer.
        nearby: of the same article; taken first when more are needed.
    """

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    nearby: tuple[int, ...] = ()


@dataclass(frozen=True)
class Questions:
    """A data set: its documents, each once, and its questions."""

    documents: tuple[str, ...]
    questions: tuple[Question, ...]


def read_squad(path: Path) -> Questions:
    """SQuAD 2.0; questions without an answer are left out.

    Raises:
        ValueError: if there is no such file or it has another format.
    """
    content = read_json(path, "squad")
    try:
        articles = [article["paragraphs"] for article in content["data"]]
        documents = sorted({text_of(part["context"]) for article in articles for part in article})
        number = {document: index for index, document in enumerate(documents)}
        questions = []
        for article in articles:
            of_article = [number[part["context"]] for part in article]
            for part in article:
                own = number[part["context"]]
                nearby = tuple(index for index in of_article if index != own)
                questions += [
                    Question(
                        text_of(asked["question"]),
                        tuple(text_of(answer["text"]) for answer in asked["answers"]),
                        (own,),
                        nearby,
                    )
                    for asked in part["qas"]
                    if not asked["is_impossible"] and asked["answers"]
                ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"squad {str(path)!r} is not in the format of SQuAD 2.0") from error
    return _questions(path, "squad", documents, questions)


def read_hotpotqa(path: Path) -> Questions:
    """HotpotQA, distractor setting: every question brings ten paragraphs.

    Raises:
        ValueError: if there is no such file or it has another format.
    """
    content = read_json(path, "hotpotqa")
    try:
        contexts = [[_paragraph(*paragraph) for paragraph in row["context"]] for row in content]
        if not all(contexts):
            raise ValueError("a question has no paragraphs")
        documents = sorted({document for context in contexts for document in context})
        number = {document: index for index, document in enumerate(documents)}
        questions = [
            Question(
                text_of(row["question"]),
                (text_of(row["answer"]),),
                tuple(dict.fromkeys(number[document] for document in context)),
            )
            for row, context in zip(content, contexts, strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"hotpotqa {str(path)!r} is not in the format of HotpotQA") from error
    return _questions(path, "hotpotqa", documents, questions)


def _paragraph(title: Any, sentences: Any) -> str:
    if not isinstance(sentences, list):
        raise TypeError(f"{sentences!r} is no list of sentences")
    return text_of(f"{text_of(title)}\n{''.join(sentences)}")


def question_answering(data: Questions) -> Draw:
    """Trial i asks question i; `size` counts documents."""

    def prompt(trial: Trial, size: int) -> Prompt:
        question = data.questions[trial.index % len(data.questions)]
        documents = [data.documents[index] for index in _documents(trial, data, question, size)]
        trial.shuffle(documents)
        context = "\n\n".join(
            f"Document {number}:\n{document}" for number, document in enumerate(documents, 1)
        )
        text = (
            f"{_INSTRUCTION}\n\nThe following are given documents.\n\n{context}\n\n{_INSTRUCTION}"
            f"\n\nQuestion: {question.text}"
        )
        return Prompt(text, " Answer:", question.answers)

    return Draw(prompt)


def _documents(trial: Trial, data: Questions, question: Question, size: int) -> list[int]:
    """The question's own documents, then those of its article, then any."""
    total = len(data.documents)
    if size >= total:
        return [index % total for index in range(size)]
    chosen = list(question.documents)
    missing = max(size - len(chosen), 0)
    if missing <= len(question.nearby):
        return chosen + trial.sample(question.nearby, missing)
    chosen += question.nearby
    others = sorted(set(range(total)) - set(chosen))
    return chosen + trial.sample(others, min(size - len(chosen), len(others)))


def _questions(
    path: Path, argument: str, documents: list[str], questions: list[Question]
) -> Questions:
    if not questions:
        raise ValueError(f"{argument} {str(path)!r} holds no question with an answer")
    for question in questions:
        if "" in question.answers:  # it occurs in whatever a model says
            raise ValueError(f"{argument} {str(path)!r} has an empty answer to {question.text!r}")
    return Questions(tuple(documents), tuple(questions))

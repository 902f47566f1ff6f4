"""What tasks are made of and lrk does not bring along: word lists, and files of the user's."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lrk.eval import words
from lrk.eval.haystack import Essay, read_essay
from lrk.eval.niah import GridNeedle
from lrk.eval.question_answering import Questions, read_hotpotqa, read_squad

_NEEDS = {
    "english": "the package wonderwords, whose word lists are part of RULER's rules: "
    "pip install wonderwords",
    "essay": "haystack: a text file, or RULER's PaulGrahamEssays.json",
    "squad": "squad: the file dev-v2.0.json of SQuAD 2.0",
    "hotpotqa": "hotpotqa: the file hotpot_dev_distractor_v1.json of HotpotQA",
}


@dataclass(frozen=True)
class Materials:
    """Each is None where it is not at hand.

    Attributes:
        english: the lists of the package wonderwords.
        words: a larger list of words.
        essay: the haystack.
        needle: of the grid.
        squad, hotpotqa: questions with their documents.
    """

    english: words.Words | None = None
    words: tuple[str, ...] | None = None
    essay: Essay | None = None
    needle: GridNeedle | None = None
    squad: Questions | None = None
    hotpotqa: Questions | None = None

    def require(self, task: str, needs: Iterable[str]) -> None:
        """Raise `ValueError` if something that a task needs is not at hand."""
        for name in needs:
            if getattr(self, name) is None:
                raise ValueError(f"task {task} needs {_NEEDS[name]}")

    def fingerprints(self, names: Iterable[str]) -> dict[str, str | None]:
        """Of the content of some of them, by name."""
        values = {name: getattr(self, name) for name in names}
        return {
            name: None if value is None else hashlib.sha256(repr(value).encode()).hexdigest()[:16]
            for name, value in values.items()
        }


def load_materials(
    haystack: str | None = None,
    words_file: str | None = None,
    squad: str | None = None,
    hotpotqa: str | None = None,
    needle: GridNeedle | None = None,
) -> Materials:
    """Read the files that are given.

    Raises:
        ValueError: for a file that does not exist or holds something else.
    """
    return Materials(
        english=words.ruler_words() if words.is_installed() else None,
        words=None if words_file is None else words.read_words(Path(words_file)),
        essay=None if haystack is None else read_essay(Path(haystack)),
        needle=needle,
        squad=None if squad is None else read_squad(Path(squad)),
        hotpotqa=None if hotpotqa is None else read_hotpotqa(Path(hotpotqa)),
    )

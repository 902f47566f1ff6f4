"""What the needles are hidden in: RULER's five sentences, or a text of the user's."""

import re
from dataclasses import dataclass
from pathlib import Path

from lrk.eval.json_file import read_json, text_of

# Of the passkey task (Mohtashami and Jaggi, arXiv 2305.16300) and RULER's type "noise".
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Essay:
    """A long text, word by word; it begins again where more words are asked for than it has."""

    words: tuple[str, ...]

    def sentences(self, num_words: int) -> list[str]:
        """The sentences of the first `num_words` words; the last may be cut short.

        A sentence ends at a full stop, question mark or exclamation mark before white space.
        """
        times = -(-num_words // len(self.words))
        return _SENTENCE_END.split(" ".join((self.words * times)[:num_words]))


def read_essay(path: Path) -> Essay:
    """A text file, or RULER's `PaulGrahamEssays.json`: an object with the key `text`.

    Raises:
        ValueError: if there is no such file or no text in it.
    """
    if not path.is_file():
        raise ValueError(f"haystack {str(path)!r} does not exist")
    try:
        if path.suffix == ".json":
            text = text_of(read_json(path, "haystack")["text"])
        else:
            text = path.read_text(encoding="utf-8")
    except UnicodeError as error:
        raise ValueError(f"haystack {str(path)!r} is no text in UTF-8: {error}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"haystack {str(path)!r} must be an object with the key 'text'") from error
    if not text.split():
        raise ValueError(f"haystack {str(path)!r} holds no words")
    return Essay(tuple(text.split()))

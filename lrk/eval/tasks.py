"""The tasks that are answered by generating text: what each needs, and how it is judged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lrk.eval import common_words, frequent_words, niah, passkey, question_answering, score
from lrk.eval import variable_tracking as vt
from lrk.eval.fitting import Draw
from lrk.eval.materials import Materials
from lrk.eval.prompt import Encoder

GRID = "niah_grid"
RULER_TRIALS = 500
GRID_TRIALS = 5


@dataclass(frozen=True)
class Setting:
    """Where the prompts of a task are made: `depth` is for the grid alone."""

    encoder: Encoder
    length: int
    seed: int
    materials: Materials
    depth: float | None = None


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        draw: makes its prompts in a setting.
        max_new_tokens: how long an answer may be.
        score: of an answer, given the references; 0 to 1.
        trials: how many its authors run at each length.
        needs: names of `Materials` without which it cannot run.
        optional: names of `Materials` that it takes where they are at hand.
        is_ruler: counts to RULER's mean.
    """

    draw: Callable[[Setting], Draw]
    max_new_tokens: int
    score: Callable[[str, Sequence[str]], float] = score.all_references
    trials: int = RULER_TRIALS
    needs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    is_ruler: bool = True


def _niah(name: str) -> Task:
    needles = niah.VARIANTS[name]
    needs = ["english"] if needles.keys == "words" else []
    if needles.haystack == "essay":
        needs.append("essay")

    def draw(setting: Setting) -> Draw:
        return niah.niah(needles, setting.materials.english, setting.materials.essay)

    return Task(draw, niah.MAX_NEW_TOKENS, needs=tuple(needs))


def _grid(setting: Setting) -> Draw:
    assert setting.depth is not None
    return niah.grid(setting.depth, setting.materials.needle, setting.materials.essay)


def _common_words(setting: Setting) -> Draw:
    words = setting.materials.english
    assert words is not None
    return common_words.common_words(setting.length, words, setting.materials.words)


def _questions(name: str) -> Task:
    def draw(setting: Setting) -> Draw:
        data = getattr(setting.materials, name)
        return question_answering.question_answering(data)

    return Task(draw, question_answering.MAX_NEW_TOKENS, score.any_reference, needs=(name,))


TASKS: dict[str, Task] = {
    "passkey": Task(
        lambda setting: passkey.passkey(),
        passkey.MAX_NEW_TOKENS,
        score.first_integer,
        passkey.TRIALS,
        is_ruler=False,
    ),
    GRID: Task(
        _grid,
        niah.MAX_NEW_TOKENS,
        trials=GRID_TRIALS,
        optional=("essay", "needle"),
        is_ruler=False,
    ),
    **{name: _niah(name) for name in niah.VARIANTS},
    "vt": Task(
        lambda setting: vt.variable_tracking(setting.encoder, setting.seed), vt.MAX_NEW_TOKENS
    ),
    "cwe": Task(
        _common_words, common_words.MAX_NEW_TOKENS, needs=("english",), optional=("words",)
    ),
    "fwe": Task(
        lambda setting: frequent_words.frequent_words(setting.length),
        frequent_words.MAX_NEW_TOKENS,
    ),
    "qa_1": _questions("squad"),
    "qa_2": _questions("hotpotqa"),
}

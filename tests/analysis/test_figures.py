import numpy as np

from lrk.analysis.counts import Counts
from lrk.analysis.figures import draw_parts_of_speech, draw_token_types
from lrk.analysis.token_types import token_types


def test_token_types_have_the_threshold(tmp_path, drawn_texts):
    counts = Counts(count=np.array([100, 50, 10, 40]), top_count=np.array([5, 30, 0, 5]))
    types = token_types(counts)
    texts = ["a$^", " b", "\n", "d"]
    chosen = types.impactful(1.25, 5)
    assert chosen.tolist() == [1]
    draw_token_types(types, texts, chosen, 1.25, "a model", tmp_path / "types.png")
    assert {"min_lift 1.25", "a model", "' b' (50)", "'a$^' (100)"} < set(drawn_texts)
    rows = [text for text in drawn_texts if text.endswith(")") and text.startswith("'")]
    assert rows == [f"{texts[index]!r} ({counts.count[index]})" for index in types.token_ids]


def test_parts_of_speech_have_their_lift(tmp_path, drawn_texts):
    counts = Counts(count=np.array([60, 40, 0]), top_count=np.array([5, 15, 0]))
    draw_parts_of_speech(counts, ["NOUN", "NUM", "X"], "a model", tmp_path / "parts.png")
    assert {"NOUN", "NUM", "\u00d7 0.42", "\u00d7 1.88"} < set(drawn_texts)
    assert "X" not in drawn_texts, "none of the tokens"

"""An analysis from its first check to the table: what each token gains, then what that means."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lrk.analysis.arguments import AnalysisArguments
from lrk.analysis.computed import Computed
from lrk.analysis.counts import count_top, gains, top_of_each_place
from lrk.analysis.extended import train_extended
from lrk.analysis.figures import draw_parts_of_speech, draw_token_types
from lrk.analysis.folder import (
    PARTS_FIGURE,
    ROWS,
    SUMMARY,
    TABLE,
    TYPES,
    TYPES_FIGURE,
    open_folder,
)
from lrk.analysis.inputs import Texts, load_config, load_tokenizer, reach
from lrk.analysis.parts_of_speech import TAGS, Tagger, token_texts
from lrk.analysis.summary import summarize
from lrk.analysis.token_types import TokenTypes, token_types
from lrk.atomic import write_text
from lrk.env import environment
from lrk.lock import locked
from lrk.output_folder import check_output_dir
from lrk.recipe.impactful import ImpactfulTokens

_SHOWN = 20


@dataclass(frozen=True)
class Analysis:
    """What was found.

    Attributes:
        folder: where the files are.
        types: the token types that occur.
        texts: (V,) texts of the vocabulary.
        table: the impactful types, as `TABLE` holds them.
        summary: numbers about all tokens, as `SUMMARY` holds them.
        arguments: what was asked.
    """

    folder: Path
    types: TokenTypes
    texts: list[str]
    table: ImpactfulTokens
    summary: dict[str, Any]
    arguments: AnalysisArguments

    def report(self) -> str:
        """A few lines for the terminal."""
        lines = [
            f"{self.summary['samples']:,} samples of {self.summary['length']:,} tokens; "
            f"{self.summary['method']}: {self.summary['top_tokens']:,} of "
            f"{self.summary['tokens']:,} tokens",
            f"{len(self.table.token_ids):,} of {len(self.types.token_ids):,} token types are "
            f"impactful: {self.summary['impactful_share']:.1%} of the tokens; "
            f"{self.summary['kept_share']:.1%} stand in sentences with one",
            f"digits: lift {self.summary['digits']['lift']:.2f}",
        ]
        if "parts_of_speech" in self.summary:
            parts = sorted(
                self.summary["parts_of_speech"].items(), key=lambda item: -item[1]["lift"]
            )
            lines.append("lift: " + ", ".join(f"{tag} {row['lift']:.2f}" for tag, row in parts))
        elif self.arguments.parts_of_speech is None:
            lines.append(f"parts of speech are not counted: {self.arguments.no_tagger}")
        lines.append("leading types (count, lift):")
        leading = zip(self.types.token_ids, self.types.count, self.types.lift, strict=True)
        for token, count, lift in list(leading)[:_SHOWN]:
            lines.append(f"  {self.texts[token]!r:<16} {count:>7,} {lift:6.2f}")
        return "\n".join([*lines, str(self.folder / TABLE)])


def analyze(arguments: AnalysisArguments) -> Analysis:
    """Find the token types that gain from a longer window; see docs/analysis.md.

    What was computed of each token is kept in the output folder, so that a run that was stopped
    goes on where it was, and one that is repeated with other thresholds computes nothing again.

    Raises:
        ValueError: in one sentence, for anything that the arguments or the data get wrong.
        atomic.SaveError: if something cannot be written; what was saved before is intact.
    """
    check_output_dir(arguments.output_dir)
    config = load_config(arguments)
    tokenizer = load_tokenizer(arguments, config)
    length = _length(arguments, reach(arguments, config, tokenizer))
    texts = Texts(arguments, tokenizer, length)
    with locked(Path(arguments.output_dir)):
        return _analyze(arguments, config, tokenizer, texts)


def _analyze(
    arguments: AnalysisArguments,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    texts: Texts,
) -> Analysis:
    folder = open_folder(arguments, texts, tokenizer)
    vocabulary = token_texts(tokenizer)

    rows = Computed(folder / ROWS, arguments, texts)
    ids = rows.of("input_ids", np.int32, lambda index: texts.input_ids(index).numpy())
    tags = _tags(rows, ids, vocabulary, arguments) if arguments.counts_parts_of_speech else None
    extended = arguments.extended
    if arguments.extend_steps:
        extended = str(train_extended(arguments, config))
    if extended is None:
        ranking = _by_key_tokens(rows, arguments)
    else:
        ranking = _by_gain(rows, ids, len(vocabulary), arguments, extended)
    counts, parts = count_top(ids, ranking.top, ranking.first, len(vocabulary), tags, len(TAGS))
    if not counts.top_count.any():
        raise ValueError(
            f"none of the {counts.count.sum():,} tokens is a key token: analyze longer samples, or "
            "compare with an extended model"
        )
    types = token_types(counts, ranking.gain)
    chosen = types.impactful(arguments.min_lift, arguments.min_count)
    types.write(folder / TYPES, vocabulary, chosen)
    title = f"{Path(arguments.model).name}: {_method(arguments)}"
    draw_token_types(types, vocabulary, chosen, arguments.min_lift, title, folder / TYPES_FIGURE)
    if tags is not None:
        draw_parts_of_speech(parts, TAGS, title, folder / PARTS_FIGURE)
    if len(chosen) == 0:
        raise ValueError(
            f"no token type has a lift above min_lift {arguments.min_lift} at 95 %: analyze more "
            f"samples or lower it; what was found is in {str(folder / TYPES)!r}"
        )
    summary = {"method": _method(arguments)} | summarize(
        arguments, tokenizer, texts, counts, parts, chosen, rows.weights()
    )
    table = ImpactfulTokens.of(tokenizer, chosen, summary)
    record = summary | {"environment": environment(sys.argv)}
    write_text(folder / SUMMARY, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / TABLE, table.to_json())
    return Analysis(folder, types, vocabulary, table, summary, arguments)


@dataclass(frozen=True)
class _Ranking:
    """Which tokens are the top.

    Attributes:
        top: (N, C) bool for C places of all samples.
        first: the places before it are not ranked.
        gain: (V,) summed gain of the types, where two models are compared.
    """

    top: Callable[[slice], NDArray[np.bool_]]
    first: int
    gain: NDArray[np.float64] | None = None


def _by_gain(
    rows: Computed, ids: NDArray, vocab_size: int, arguments: AnalysisArguments, extended: str
) -> _Ranking:
    base_logits = rows.logits("model", arguments.model, arguments.gguf_file)
    extended_logits = rows.logits("extended", extended, None)

    def delta(places: slice) -> NDArray:
        return extended_logits[:, places] - base_logits[:, places]

    def top(places: slice) -> NDArray[np.bool_]:
        return top_of_each_place(delta(places), arguments.top_share)

    first = 1  # nothing predicts the first token
    return _Ranking(top, first, gains(ids, delta, first, vocab_size))


def _by_key_tokens(rows: Computed, arguments: AnalysisArguments) -> _Ranking:
    keys = rows.key_tokens()
    # What is not farther than the short context is never key.
    first = arguments.short_context + arguments.short_stride
    return _Ranking(lambda places: keys[:, places] > 0, first)


def _tags(
    rows: Computed, ids: NDArray, vocabulary: list[str], arguments: AnalysisArguments
) -> NDArray:
    """(N, S) parts of speech; spaCy is loaded if any are missing."""
    tagger = Tagger(vocabulary, arguments.spacy_model) if rows.lacks("tags", np.int8) else None

    def row(index: int) -> NDArray:
        assert tagger is not None
        return tagger(ids[index].tolist())

    return rows.of("tags", np.int8, row)


def _method(arguments: AnalysisArguments) -> str:
    return f"top {arguments.top_share:.0%} by gain" if arguments.compares_models else "key tokens"


def _length(arguments: AnalysisArguments, window: int) -> int:
    length = arguments.length or window
    if arguments.target_length is not None and arguments.target_length < length:
        raise ValueError(
            f"target_length is {arguments.target_length}, shorter than length {length}; it must be "
            "at least as long"
        )
    shortest = arguments.short_context + arguments.short_stride
    if not arguments.compares_models and length <= shortest:
        raise ValueError(
            f"length is {length}; without extended it must be more than short_context + "
            f"short_stride, {shortest}"
        )
    return length

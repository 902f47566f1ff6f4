"""What an analysis says in numbers, beside the table of types."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lrk.analysis.arguments import AnalysisArguments
from lrk.analysis.counts import Counts
from lrk.analysis.inputs import Texts
from lrk.analysis.parts_of_speech import TAGS
from lrk.recipe.selection import digit_types, segments_with


def summarize(
    arguments: AnalysisArguments,
    tokenizer: PreTrainedTokenizerBase,
    texts: Texts,
    counts: Counts,
    parts: Counts,
    chosen: NDArray[np.int64],
    weights: dict[str, str],
) -> dict[str, Any]:
    """What `analysis.json` and the table's details hold.

    Args:
        counts, parts: of token types and of parts of speech.
        chosen: ids of the impactful types.
        weights: fingerprints of the models.
    """
    impactful = np.zeros(len(counts.count), bool)
    impactful[chosen] = True
    digits = digit_types(tokenizer)
    found = {
        "arguments": arguments.to_dict(),
        "samples": len(texts),
        "length": texts.length,
        "tokens": int(counts.count.sum()),
        "top_tokens": int(counts.top_count.sum()),
        "impactful_share": float(counts.share[impactful].sum()),
        "kept_share": _kept_share(texts, impactful),
        "weights": weights,
        "digits": _row(float(counts.share[digits].sum()), float(counts.top_share[digits].sum())),
    }
    if arguments.counts_parts_of_speech:
        found["parts_of_speech"] = {
            tag: _row(float(share), float(top))
            for tag, share, top in zip(TAGS, parts.share, parts.top_share, strict=True)
            if share
        }
    return found


def _row(share: float, top_share: float) -> dict[str, float]:
    """Of some tokens: their share among all, among the top, and the ratio of the two."""
    return {"share": share, "top_share": top_share, "lift": top_share / share if share else 0.0}


def _kept_share(texts: Texts, impactful: NDArray[np.bool_]) -> float:
    """Share of the tokens that stand in sentences with an impactful type."""
    kept = 0
    for index in range(len(texts)):
        lengths = texts.segment_lengths(index)
        kept += int(
            lengths[segments_with(texts.input_ids(index).numpy(), lengths, impactful)].sum()
        )
    return kept / (len(texts) * texts.length)

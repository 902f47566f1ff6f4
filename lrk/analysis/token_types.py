"""From counts to a decision: which token types are impactful.

A type that occurs n times, k of them among the top, has the lift (k / K) / (n / N): its share among
the K top tokens over its share among all N. Rare types have large lifts by chance. So what decides
is a lower bound: k / n is replaced by the lower end of its 95 % Wilson interval, which is far below
k / n where n is small. A type is impactful if the bound exceeds `min_lift` and it occurs at least
`min_count` times.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrk.analysis.counts import Counts
from lrk.atomic import atomic_file
from lrk.wilson import wilson_interval


@dataclass(frozen=True)
class TokenTypes:
    """The token types that occur, those with the highest lower bound of the lift first.

    Attributes:
        token_ids: (T,) int64.
        count, top_count: (T,) how often each occurs, and is among the top.
        gain: (T,) sum of the logits gained, or NaN where no second model is compared.
        lift: (T,) share among the top over share among all.
        lift_low: (T,) the same with the lower end of the 95 % interval of top_count / count.
    """

    token_ids: NDArray[np.int64]
    count: NDArray[np.int64]
    top_count: NDArray[np.int64]
    gain: NDArray[np.float64]
    lift: NDArray[np.float64]
    lift_low: NDArray[np.float64]

    def impactful(self, min_lift: float, min_count: int) -> NDArray[np.int64]:
        """Ids of the types whose lift is above `min_lift` by its lower bound, in order."""
        return self.token_ids[(self.lift_low > min_lift) & (self.count >= min_count)]

    def write(self, path: Path, texts: Sequence[str], impactful: NDArray[np.int64]) -> None:
        """A CSV file, one row a type, in order; `texts` are those of the vocabulary."""
        chosen = set(impactful.tolist())
        with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as f:
            rows = csv.writer(f)
            rows.writerow(
                ["token_id", "text", "count", "top_count", "lift", "lift_low", "gain", "impactful"]
            )
            for row in zip(
                self.token_ids.tolist(), self.count.tolist(), self.top_count.tolist(),
                self.lift.tolist(), self.lift_low.tolist(), self.gain.tolist(), strict=True,
            ):  # fmt: skip
                token, count, top_count, lift, low, gain = row
                rows.writerow(
                    [token, repr(texts[token])[1:-1], count, top_count, f"{lift:.4f}",
                     f"{low:.4f}", f"{gain:.3f}", int(token in chosen)]
                )  # fmt: skip


def token_types(counts: Counts, gain: NDArray[np.float64] | None = None) -> TokenTypes:
    """The table of the types that occur."""
    ids = np.flatnonzero(counts.count)
    count, top_count = counts.count[ids], counts.top_count[ids]
    share = counts.top_count.sum() / max(counts.count.sum(), 1)
    scale = 1 / share if share else 0.0
    low = scale * wilson_interval(top_count, count)[0]
    order = np.lexsort((ids, -count, -low))
    return TokenTypes(
        token_ids=ids[order],
        count=count[order],
        top_count=top_count[order],
        gain=np.full(len(ids), np.nan) if gain is None else gain[ids][order],
        lift=(scale * top_count / count)[order],
        lift_low=low[order],
    )

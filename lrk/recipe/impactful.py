"""The table of impactful token types: by which sentences a document's text is chosen.

`lrk-data analyze` makes it, `lrk-data select` and `lrk-train` read it. It is JSON:

    {"format": 1, "tokenizer": FINGERPRINT, "vocab_size": V, "token_ids": [...], "details": {...}}
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedTokenizerBase

from lrk.field_types import check_types
from lrk.recipe.fingerprint import tokenizer_fingerprint

FORMAT = 1


@dataclass(frozen=True)
class ImpactfulTokens:
    """Token types that gain most from a longer window (LongRecipe, 2409.00509, 3.1).

    Attributes:
        tokenizer: `tokenizer_fingerprint` of the tokenizer whose ids these are.
        vocab_size: V, its number of tokens; every id is below it.
        token_ids: (K,) int64, sorted and distinct; at least one.
        details: what else the analysis has to say (how, on what, scores); kept, not read.

    Raises:
        ValueError: for ids that are none of V tokens, twice the same, or no id.
    """

    tokenizer: str
    vocab_size: int
    token_ids: NDArray[np.int64]
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self, ["tokenizer", "vocab_size"])
        given = np.asarray(self.token_ids)
        if given.ndim != 1 or given.dtype.kind not in "iu" or len(given) == 0:
            raise ValueError("token_ids must be a list of at least one integer")
        ids = np.unique(given).astype(np.int64)
        if len(ids) < len(given):
            raise ValueError(f"token_ids has {len(given) - len(ids)} ids twice; each must be once")
        if ids[0] < 0 or ids[-1] >= self.vocab_size:
            wrong = ids[0] if ids[0] < 0 else ids[-1]
            raise ValueError(f"token_ids has {wrong}; each must be in 0 .. {self.vocab_size - 1}")
        object.__setattr__(self, "token_ids", ids)

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        token_ids: ArrayLike,
        details: Mapping[str, Any] | None = None,
    ) -> "ImpactfulTokens":
        """The table of a tokenizer at hand."""
        ids = np.asarray(token_ids)
        return cls(tokenizer_fingerprint(tokenizer), len(tokenizer), ids, details or {})

    def mask(self) -> NDArray[np.bool_]:
        """(V,) bool: which tokens are impactful."""
        mask = np.zeros(self.vocab_size, bool)
        mask[self.token_ids] = True
        return mask

    def to_json(self) -> str:
        """The table as text; `read_impactful` reads it back from a file."""
        content = {
            "format": FORMAT,
            "tokenizer": self.tokenizer,
            "vocab_size": self.vocab_size,
            "token_ids": self.token_ids.tolist(),
            "details": dict(self.details),
        }
        return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def read_impactful(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> ImpactfulTokens:
    """Read a table and check that it is of this tokenizer.

    Raises:
        ValueError: if there is no such file, it is no table, or it is of another tokenizer.
    """
    what = f"impactful_tokens {str(path)!r}"
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{what} is no table of format {FORMAT} that lrk-data analyze wrote")
    try:
        table = ImpactfulTokens(
            content["tokenizer"],
            content["vocab_size"],
            np.asarray(content["token_ids"]),
            content.get("details", {}),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{what} is damaged: {' '.join(str(error).split())}") from error
    if table.tokenizer != tokenizer_fingerprint(tokenizer):
        raise ValueError(
            f"{what} is of another tokenizer than {tokenizer.name_or_path!r}; analyze a corpus "
            "with this one"
        )
    if table.vocab_size != len(tokenizer):
        raise ValueError(
            f"{what} is damaged: vocab_size is {table.vocab_size}, and its tokenizer has "
            f"{len(tokenizer)}"
        )
    return table

"""Arguments of an assembly, checked when they are made."""

from dataclasses import dataclass

from lrk.data.assemble.verification import Verification
from lrk.field_types import check_types
from lrk.recipe.data_files import check_sources
from lrk.train.nearest import require_one_of

NEIGHBOURS, NEGATIVES = METHODS = ("neighbours", "negatives")
# Of a chunk of a document whose parts are to lie far apart.
CHUNK_TOKENS = 2048
# Tokens of the samples of a shard, as many as `lrk-data prepare` puts into one.
SHARD_TOKENS = 2**24


@dataclass(frozen=True)
class Assembly:
    """What the content of a folder of assembled samples follows from.

    Attributes:
        data: prepared folders.
        method: `neighbours` or `negatives`.
        target_length: tokens of every sample.
        chunk_tokens: for `negatives`, tokens of a chunk, about; None for CHUNK_TOKENS.
        samples: how many are planned, at most, before verification leaves out any. None plans as
            many as the documents have tokens for.
        seed: of the order in which documents open samples.
        shard_tokens: a shard has so many samples as have so many tokens, at least one.
        verification: keep the samples that help a model, or all.
    """

    data: list[str]
    method: str
    target_length: int = 131_072
    chunk_tokens: int | None = None
    samples: int | None = None
    seed: int = 42
    shard_tokens: int = SHARD_TOKENS
    verification: Verification | None = None

    def __post_init__(self) -> None:
        check_sources(self.data)
        check_types(self, [name for name in vars(self) if name != "verification"])
        require_one_of("method", self.method, METHODS)
        for name, least in (
            ("target_length", 2),
            ("chunk_tokens", 1),
            ("samples", 1),
            ("seed", 0),
            ("shard_tokens", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if self.chunk_tokens is not None and self.method != NEGATIVES:
            raise ValueError(
                f"chunk_tokens is {self.chunk_tokens} and method {self.method!r}; only negatives "
                "cuts documents into chunks"
            )
        if self.chunk_size is not None and self.chunk_size >= self.target_length:
            raise ValueError(
                f"chunk_tokens is {self.chunk_size}; it must be less than target_length "
                f"{self.target_length}"
            )
        if self.verification is not None:
            self.verification.check_length(self.target_length)

    @property
    def chunk_size(self) -> int | None:
        """`chunk_tokens` or its default; None where nothing is cut."""
        if self.method != NEGATIVES:
            return None
        return CHUNK_TOKENS if self.chunk_tokens is None else self.chunk_tokens

"""Arguments of a search, checked when they are made."""

from dataclasses import asdict, dataclass, field
from typing import Any

from lrk.field_types import check_types
from lrk.longrope.evolution import Evolution
from lrk.pretrained import check_device, default_device
from lrk.train.arguments import DTYPES
from lrk.train.nearest import require_one_of

# Where things lie, whose content is compared, and how a search is run.
_FREE = frozenset(
    {"model", "gguf_file", "haystack", "output_dir", "overwrite_output_dir", "device", "iterations"}
)


@dataclass
class LongRopeArguments:
    """What is searched for, with what, and where the factors go.

    Attributes:
        model: folder or hub name.
        target_length: tokens to reach, more than the model's window.
        output_dir: folder of the factors and the trials.
        haystack: text files in which needles are hidden, in turn; RULER's sentences without any.
        samples: texts with a needle; as many more are held out.
        population, iterations, mutation_probability, seed: see `Evolution`.
        attention_factor: of cosine and sine; None for that of `search_factors`.
        gguf_file: in the model's folder; its weights are dequantised.
        dtype: of the weights.
        device: None for the accelerator if there is one.
        overwrite_output_dir: delete the search that `output_dir` holds.

    Raises:
        ValueError: for a value that no search can have.
    """

    model: str = ""
    target_length: int = 0
    output_dir: str = ""
    haystack: list[str] = field(default_factory=list)
    samples: int = 10
    population: int = 64
    iterations: int = 40
    mutation_probability: float = 0.3
    attention_factor: float | None = None
    seed: int = 42
    gguf_file: str | None = None
    dtype: str = "auto"
    device: str | None = None
    overwrite_output_dir: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("model", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing")
        if self.device is None:
            self.device = default_device()
        check_device(self.device)
        if self.target_length < 2:
            raise ValueError(f"target_length is {self.target_length}; it must be at least 2")
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}; it must be at least 1")
        if self.attention_factor is not None and not 0 < self.attention_factor < float("inf"):
            raise ValueError(
                f"attention_factor is {self.attention_factor}; it must be positive and finite"
            )
        require_one_of("dtype", self.dtype, DTYPES)
        self.evolution()

    def evolution(self) -> Evolution:
        """How much is tried."""
        return Evolution(self.population, self.iterations, self.mutation_probability, self.seed)

    def identity(self) -> dict[str, Any]:
        """What the trials follow from, as JSON takes it; more iterations go on where they ended."""
        return {name: value for name, value in asdict(self).items() if name not in _FREE}

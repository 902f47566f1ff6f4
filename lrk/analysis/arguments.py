"""Arguments of an analysis, checked when they are made."""

import importlib.util
from dataclasses import asdict, dataclass, field
from typing import Any

from lrk.analysis.parts_of_speech import SPACY_MODEL
from lrk.eval.longppl import SHORT_CONTEXT, SHORT_STRIDE
from lrk.field_types import check_types
from lrk.positions import SAMPLERS
from lrk.pretrained import default_device
from lrk.train.arguments import DTYPES
from lrk.train.nearest import require_one_of
from lrk.versions import pip_install

# How an analysis is started, not what it finds: left out of what is stored.
_ACTIONS = frozenset({"output_dir", "overwrite_output_dir", "device"})


def _help(text: str, **options: Any) -> dict[str, Any]:
    return {"help": text, **options}


@dataclass
class AnalysisArguments:
    """What to analyze, by which models, and where the table goes.

    With `extended` (or `extend_steps`) two models are compared: impactful tokens. Without, one
    model is compared with itself on short contexts: key tokens.

    Raises:
        ValueError: for a value that no analysis can have.
    """

    model: str = field(default="", metadata=_help("folder or hub name of the base model"))
    data: list[str] = field(
        default_factory=list,
        metadata=_help("files, folders, glob patterns or hub:OWNER/NAME to analyze"),
    )
    output_dir: str = field(default="", metadata=_help("folder of the table and the figures"))
    extended: str | None = field(
        default=None, metadata=_help("the same model after a short extension (default: none)")
    )
    gguf_file: str | None = field(
        default=None, metadata=_help("GGUF file in the model's folder; its weights are dequantised")
    )
    text_column: str = field(
        default="text", metadata=_help("column of a jsonl, parquet or hub data set with the text")
    )

    length: int | None = field(
        default=None,
        metadata=_help("tokens of a sample (default: the window of the longer-reaching model)"),
    )
    samples: int = field(
        default=256, metadata=_help("samples at most, spread evenly over the documents")
    )
    target_length: int | None = field(
        default=None,
        metadata=_help("positions that a sample is spread over (default: length, without a skip)"),
    )
    position_method: str = field(
        default="longrecipe", metadata=_help(f"how: one of {', '.join(SAMPLERS)}")
    )
    seed: int = field(default=42, metadata=_help("of the positions"))

    top_share: float = field(
        default=0.2, metadata=_help("share of the tokens at each place that count as top")
    )
    min_lift: float = field(
        default=1.5,
        metadata=_help("how many times as frequent an impactful type is among the top, at least"),
    )
    min_count: int = field(
        default=5, metadata=_help("how often an impactful type occurs, at least")
    )
    short_context: int = field(
        default=SHORT_CONTEXT, metadata=_help("without extended: short context in tokens")
    )
    short_stride: int = field(
        default=SHORT_STRIDE, metadata=_help("without extended: tokens between short contexts")
    )
    parts_of_speech: bool | None = field(
        default=None,
        metadata=_help(
            "also count parts of speech (English, by spaCy; default: where it is installed)"
        ),
    )
    spacy_model: str = field(default=SPACY_MODEL, metadata=_help("pipeline of spaCy that tags"))

    extend_steps: int = field(
        default=0, metadata=_help("make extended first, by so many steps of lrk-train")
    )
    extend_data: list[str] = field(
        default_factory=list, metadata=_help("documents of these steps; other ones than data")
    )
    extend_length: int | None = field(
        default=None, metadata=_help("their train_length (default: that of lrk-train)")
    )
    extend_learning_rate: float = field(
        default=5e-5, metadata=_help("their learning rate, constant")
    )

    dtype: str = field(default="auto", metadata=_help(f"dtype of the weights: {', '.join(DTYPES)}"))
    device: str | None = field(
        default=None, metadata=_help("device (default: the accelerator if there is one)")
    )
    overwrite_output_dir: bool = field(
        default=False, metadata=_help("delete the analysis that output_dir holds")
    )

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("model", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing")
        if not self.data:
            raise ValueError("data is empty; it must name what to analyze")
        if self.device is None:
            self.device = default_device()
        self._check_numbers()
        require_one_of("position_method", self.position_method, SAMPLERS)
        require_one_of("dtype", self.dtype, DTYPES)
        self._check_extension()
        if self.parts_of_speech and self.no_tagger is not None:
            raise ValueError(f"parts_of_speech is True, but {self.no_tagger}")

    @property
    def compares_models(self) -> bool:
        """Whether two models are compared, and not one with itself on short contexts."""
        return self.extended is not None or self.extend_steps > 0

    @property
    def counts_parts_of_speech(self) -> bool:
        """Whether parts of speech are counted: as asked, or else where spaCy is installed."""
        return self.no_tagger is None if self.parts_of_speech is None else self.parts_of_speech

    @property
    def no_tagger(self) -> str | None:
        """Why parts of speech cannot be counted here, and what to install; None if they can be."""
        for module in ("spacy", self.spacy_model):
            if importlib.util.find_spec(module) is None:
                needed = pip_install("spacy", SPACY_MODEL.replace("_", "-"))
                return f"{module} is not installed; `{needed}` brings what tags English"
        return None

    def _check_numbers(self) -> None:
        for name in ("samples", "short_context", "short_stride", "min_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("length", "target_length", "extend_length"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{name} is {value}; it must be at least 2")
        if not 0 < self.top_share < 1:
            raise ValueError(f"top_share is {self.top_share}; it must be between 0 and 1")
        if self.compares_models and self.samples * self.top_share < 1:
            raise ValueError(
                f"samples is {self.samples}; the top {self.top_share:.0%} of the tokens at each "
                f"place needs at least {-int(-1 // self.top_share)} of them"
            )
        if self.min_lift <= 0:
            raise ValueError(f"min_lift is {self.min_lift}; it must be positive")

    def _check_extension(self) -> None:
        if self.extend_steps < 0:
            raise ValueError(f"extend_steps is {self.extend_steps}; it must be 0 or positive")
        if self.extended is not None and self.extend_steps:
            raise ValueError(
                "extended and extend_steps exclude each other: the one is there already"
            )
        if self.extend_steps and not self.extend_data:
            raise ValueError(
                "extend_data is empty; with extend_steps it must name documents to train on: other "
                "ones than data, or what the model has learnt by heart looks impactful"
            )
        if self.extend_data and not self.extend_steps:
            raise ValueError(
                "extend_data is given without extend_steps, so nothing would be trained"
            )
        if self.target_length is not None and not self.compares_models:
            raise ValueError(
                f"target_length is {self.target_length} without extended; short contexts are cut "
                "from texts with ordinary positions"
            )

    def to_dict(self) -> dict[str, Any]:
        """What is analyzed, as JSON takes it."""
        return {name: value for name, value in asdict(self).items() if name not in _ACTIONS}

"""Which model is trained, and the dtype of its weights."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lrk.train.arguments.argument import help_text
from lrk.train.nearest import require_one_of

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments

DTYPES = ("float32", "bfloat16", "float16", "auto")


@dataclass
class ModelArguments:
    """The pretrained model."""

    model_name_or_path: str | None = field(
        default=None, metadata=help_text("folder or hub name of the pretrained model")
    )
    gguf_file: str | None = field(
        default=None, metadata=help_text("GGUF file in that folder; its weights are dequantised")
    )
    dtype: str = field(
        default="float32",
        metadata=help_text(f"dtype of the weights in training: {', '.join(DTYPES)}"),
    )


def check(arguments: "LrkTrainingArguments") -> None:
    """Refuse an unknown dtype."""
    require_one_of("dtype", arguments.dtype, DTYPES)

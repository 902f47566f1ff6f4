"""Which documents a run reads, and how."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lrk.recipe.mixture import check_shares
from lrk.recipe.upsample import check_upsampling
from lrk.train.arguments.argument import help_text

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments

SHUFFLE_BUFFER = 256


@dataclass
class DataArguments:
    """Sources of documents, their shares, and the way in which they are read."""

    data: list[str] = field(
        default_factory=list,
        metadata=help_text("files, folders, glob patterns or hub:OWNER/NAME to train on"),
    )
    data_shares: list[float] | None = field(
        default=None,
        metadata=help_text(
            "share of the samples that each source of data gives (default: all of it)"
        ),
    )
    eval_data: list[str] = field(
        default_factory=list, metadata=help_text("the same, to evaluate on; never packed")
    )
    text_column: str = field(
        default="text",
        metadata=help_text("column of a jsonl, parquet or hub data set with the text"),
    )
    assistant_only: bool = field(
        default=True,
        metadata=help_text(
            "in messages, train on the assistant's turns; in prompts, on completions"
        ),
    )
    split_special_tokens: bool = field(
        default=True,
        metadata=help_text(
            "what reads like a special token in a text, such as <|endoftext|>, is text"
        ),
    )
    pack: bool = field(
        default=True,
        metadata=help_text("pack short documents and the ends of long ones into samples"),
    )
    dataset_num_proc: int | None = field(
        default=None, metadata=help_text("processes that tokenize")
    )
    streaming: bool = field(
        default=False,
        metadata=help_text(
            "read the data as training goes (they may exceed the disk); needs max_steps"
        ),
    )
    shuffle_buffer: int | None = field(
        default=None,
        metadata=help_text(
            f"samples of a stream among which the next is drawn (default: {SHUFFLE_BUFFER}); 0 "
            "leaves them in order"
        ),
    )

    upsample_longer_than: int | None = field(
        default=None,
        metadata=help_text("prepared documents of more tokens are read more often (default: none)"),
    )
    upsample_factor: float = field(
        default=5.0,
        metadata=help_text("their weight beside shorter ones of a source, which keeps its tokens"),
    )


def resolve(arguments: "LrkTrainingArguments") -> None:
    """The buffer of a stream."""
    if arguments.streaming and arguments.shuffle_buffer is None:
        arguments.shuffle_buffer = SHUFFLE_BUFFER


def check_upsampled(arguments: "LrkTrainingArguments") -> None:
    """Refuse a weight without a length, and a stream, whose lengths are not known."""
    if arguments.upsample_longer_than is None:
        if arguments.is_given("upsample_factor"):
            raise ValueError(
                f"upsample_factor is {arguments.upsample_factor} without upsample_longer_than; it "
                "is the weight of documents that are longer, so give both or neither"
            )
        return
    check_upsampling(arguments.upsample_longer_than, arguments.upsample_factor)
    if arguments.streaming:
        raise ValueError(
            f"upsample_longer_than is {arguments.upsample_longer_than} with streaming; how "
            "often a document is read depends on the lengths of all of its source"
        )


def check_mixture(arguments: "LrkTrainingArguments") -> None:
    """Refuse shares that do not fit the sources, and shares of a stream."""
    if arguments.data_shares is None:
        return
    check_shares(arguments.data_shares, len(arguments.data))
    if arguments.streaming:
        raise ValueError(
            "data_shares is given with streaming; a stream reads one source after the other, "
            "so leave one of them out"
        )


def check_streaming(arguments: "LrkTrainingArguments") -> None:
    """Refuse a stream without an end or in another order, and its buffer without a stream."""
    if not arguments.streaming:
        if arguments.shuffle_buffer is not None:
            raise ValueError(
                f"shuffle_buffer is {arguments.shuffle_buffer} without streaming; samples that are "
                "prepared beforehand are shuffled as a whole, so leave it empty"
            )
        return
    if arguments.max_steps <= 0:
        raise ValueError(
            f"max_steps is {arguments.max_steps} with streaming; it must be positive, because a "
            "stream does not say how many samples it holds"
        )
    if arguments.shuffle_buffer is not None and arguments.shuffle_buffer < 0:
        raise ValueError(f"shuffle_buffer is {arguments.shuffle_buffer}; it must be 0 or positive")
    if arguments.dataloader_num_workers > 1:
        raise ValueError(
            f"dataloader_num_workers is {arguments.dataloader_num_workers} with streaming; it must "
            "be 0 or 1, because where a sample begins depends on every document before it, so "
            "each worker would read and tokenize all of them"
        )
    if arguments.train_sampling_strategy != "random":
        raise ValueError(
            f"train_sampling_strategy is {arguments.train_sampling_strategy!r} with streaming; the "
            "order of a stream is set by shuffle_buffer alone"
        )

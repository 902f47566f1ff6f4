"""Arguments of an evaluation, checked when they are made."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from lrk.eval import decoding, short_context
from lrk.eval.longppl import SHORT_CONTEXT, SHORT_STRIDE
from lrk.eval.tasks import GRID, TASKS
from lrk.field_types import check_types
from lrk.pretrained import check_device, default_device
from lrk.share import Share, local_share, process_share
from lrk.train.nearest import require_one_of

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
LOSS_TASKS = ("perplexity", "loss_by_position", "longppl")
ALL_TASKS = (*TASKS, *LOSS_TASKS)

# How a run is started, not what it measures: left out of what is stored.
_ACTIONS = ("dry_run", "overwrite_output_dir", "shard")


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class EvalArguments:
    """What to evaluate, on what, and where results go.

    Raises:
        ValueError: for a value that no evaluation can have.
    """

    model: str | None = field(default=None, metadata=_help("folder or hub name of the model"))
    tokenizer: str | None = field(
        default=None, metadata=_help("folder or hub name of the tokenizer (default: the model's)")
    )
    gguf_file: str | None = field(
        default=None, metadata=_help("GGUF file in the model's folder; its weights are dequantised")
    )
    dtype: str = field(default="auto", metadata=_help(f"dtype of the weights: {', '.join(DTYPES)}"))
    device: str | None = field(
        default=None,
        metadata=_help(
            "device (default: the accelerator if there is one; of several processes each its own)"
        ),
    )
    device_map: str | None = field(
        default=None,
        metadata=_help(
            "spread a model over all accelerators, and the memory and disk of the machine; how: "
            + ", ".join(DEVICE_MAPS)
        ),
    )
    patch: bool | None = field(
        default=None,
        metadata=_help("run lrk's operations (default: where the model type is supported)"),
    )
    decoding: str | None = field(
        default=None,
        metadata=_help("method of lrk.decode, written like self_extend(window=1024, group=8)"),
    )
    output_dir: str | None = field(default=None, metadata=_help("folder of the results"))

    tasks: list[str] = field(default_factory=list, metadata=_help(f"any of {', '.join(ALL_TASKS)}"))
    lengths: list[int] = field(
        default_factory=list, metadata=_help("lengths in tokens, the answer included")
    )
    trials: int | None = field(
        default=None, metadata=_help("trials a cell (default: what each task's authors run)")
    )
    grid_trials: int | None = field(
        default=None, metadata=_help(f"trials a cell of {GRID} (default: trials)")
    )
    max_new_tokens: int | None = field(
        default=None,
        metadata=_help("tokens of an answer at most (default: what each task's authors allow)"),
    )
    depths: list[float] = field(
        default_factory=lambda: [float(depth) for depth in range(0, 101, 10)],
        metadata=_help(f"depths of {GRID} in per cent"),
    )
    seed: int = field(default=42, metadata=_help("seed of all trials"))
    batch_size: int = field(default=1, metadata=_help("prompts generated from at a time"))
    chat_template: bool = field(
        default=False, metadata=_help("ask in the tokenizer's chat template")
    )

    haystack: str | None = field(
        default=None, metadata=_help(f"text for the tasks with essays and for {GRID}")
    )
    needle: str | None = field(default=None, metadata=_help(f"sentence to hide in {GRID}"))
    question: str | None = field(default=None, metadata=_help("question about the needle"))
    answer: str | None = field(default=None, metadata=_help("what the answer must hold"))
    words: str | None = field(
        default=None, metadata=_help("RULER's english_words.json, for cwe at great lengths")
    )
    squad: str | None = field(default=None, metadata=_help("SQuAD 2.0, dev-v2.0.json, for qa_1"))
    hotpotqa: str | None = field(
        default=None, metadata=_help("HotpotQA, hotpot_dev_distractor_v1.json, for qa_2")
    )

    data: list[str] = field(
        default_factory=list,
        metadata=_help("files, folders, glob patterns or hub:OWNER/NAME for the losses"),
    )
    text_column: str = field(
        default="text", metadata=_help("column of a jsonl, parquet or hub data set with the text")
    )
    documents: int = field(default=10, metadata=_help("documents to read, at most"))
    document_length: int | None = field(
        default=None,
        metadata=_help("tokens read of each document (default: the greatest of lengths)"),
    )
    stride: int = field(default=256, metadata=_help("stride of the windows of perplexity"))
    position_bins: int = field(default=32, metadata=_help("intervals of loss_by_position"))
    short_context: int = field(default=SHORT_CONTEXT, metadata=_help("short context of longppl"))
    short_stride: int = field(
        default=SHORT_STRIDE, metadata=_help("tokens between short contexts of longppl")
    )
    key_model: str | None = field(
        default=None,
        metadata=_help("model that finds the key tokens of longppl (default: the model itself)"),
    )

    lm_eval_tasks: list[str] = field(
        default_factory=list, metadata=_help("tasks of lm-eval, for short-context abilities")
    )
    lm_eval_folder: str | None = field(
        default=None, metadata=_help("folder with YAML files of more tasks of lm-eval")
    )

    overwrite_output_dir: bool = field(
        default=False, metadata=_help("delete the results that output_dir holds")
    )
    shard: str | None = field(
        default=None,
        metadata=_help("run part I of N of the cells alone, written I/N, from 0/N to N-1/N"),
    )
    dry_run: bool = field(
        default=False, metadata=_help("check everything, print counts and one example, and stop")
    )

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("model", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing; lrk-eval --help says what there is")
        if not self.tasks and not self.lm_eval_tasks:
            raise ValueError(f"tasks is empty; it must name some of {', '.join(ALL_TASKS)}")
        if self.device is None and self.device_map is None:
            self.device = default_device()
        for name in ("tasks", "lengths", "depths", "lm_eval_tasks"):
            setattr(self, name, list(dict.fromkeys(getattr(self, name))))
        self._check_names()
        self._check_numbers()
        self._check_tasks()

    def _check_names(self) -> None:
        for task in self.tasks:
            require_one_of("tasks", task, ALL_TASKS)
        require_one_of("dtype", self.dtype, DTYPES)
        self._check_share()
        self._check_devices()
        self._check_decoding()
        given = [value is not None for value in (self.needle, self.question, self.answer)]
        if any(given) and not all(given):
            raise ValueError("needle, question and answer go together; one of them is missing")
        if self.lm_eval_tasks:
            short_context.require_lm_eval()
        if self.lm_eval_folder is not None and not Path(self.lm_eval_folder).is_dir():
            raise ValueError(f"lm_eval_folder {self.lm_eval_folder!r} does not exist")

    def _check_share(self) -> None:
        if self.share.count > 1 and self.overwrite_output_dir:
            raise ValueError(
                f"overwrite_output_dir is true for share {self.share} of the cells, which would "
                "delete those of the others: delete the folder first, or choose another"
            )

    def _check_devices(self) -> None:
        if self.device_map is None:
            check_device(str(self.device))
            check_device(str(self.own_device))
            return
        require_one_of("device_map", self.device_map, DEVICE_MAPS)
        if self.device is not None:
            raise ValueError(
                f"device is {self.device!r} and device_map {self.device_map!r}; give one of them"
            )
        if (processes := local_share().count) > 1:
            raise ValueError(
                f"device_map is {self.device_map!r}, which takes all accelerators of the machine, "
                f"and {processes} processes run on it: start one process on each machine"
            )

    @property
    def share(self) -> Share:
        """Which cells this process runs: part `shard`, divided among those of a launcher."""
        asked = Share() if self.shard is None else Share.parse(self.shard)
        return asked.divided(process_share())

    @property
    def own_device(self) -> torch.device | None:
        """`device`; of several processes on a machine each its own, unless an index is given."""
        if self.device is None:
            return None
        device, local = torch.device(self.device), local_share()
        if device.type == "cpu" or device.index is not None or local.count == 1:
            return device
        return torch.device(device.type, local.index)

    def _check_decoding(self) -> None:
        if self.decoding is None:
            return
        method = decoding.read(self.decoding)
        if self.patch is False:
            raise ValueError(f"decoding is {self.decoding!r}, which needs patch, which is false")
        if method.changes_logits:
            of_hidden_states = [task for task in self.tasks if task in LOSS_TASKS]
            for task in of_hidden_states + self.lm_eval_tasks:
                raise ValueError(
                    f"decoding is {self.decoding!r}, which cuts off likelihoods; task {task} "
                    "must be run without it"
                )
        self.decoding = str(method)

    def _check_numbers(self) -> None:
        for name in (
            "trials",
            "grid_trials",
            "max_new_tokens",
            "batch_size",
            "documents",
            "document_length",
            "position_bins",
            "short_context",
            "short_stride",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for length in self.lengths:
            if length < 2:
                raise ValueError(f"lengths has {length}; each must be at least 2")
        for depth in self.depths:
            if not 0 <= depth <= 100:
                raise ValueError(f"depths has {depth}; each must be between 0 and 100")
        if self.tasks and not self.lengths:
            raise ValueError("lengths is empty; it must name at least one length in tokens")
        if GRID in self.tasks and not self.depths:
            raise ValueError(f"depths is empty; task {GRID} needs at least one")

    def _check_tasks(self) -> None:
        chosen = [task for task in LOSS_TASKS if task in self.tasks]
        if not chosen:
            return
        if not self.data:
            raise ValueError(f"data is empty; task {chosen[0]} must have texts to read")
        if self.document_length is None:
            self.document_length = max(self.lengths)
        if max(self.lengths) > self.document_length:
            raise ValueError(
                f"document_length is {self.document_length}; task {chosen[0]} at length "
                f"{max(self.lengths)} needs as many"
            )
        shortest = min(self.lengths)
        if "perplexity" in self.tasks and not 1 <= self.stride < shortest:
            raise ValueError(
                f"stride is {self.stride}; it must be at least 1 and less than the shortest of "
                f"lengths, {shortest}"
            )
        if "longppl" in self.tasks and shortest <= self.short_context + self.short_stride:
            raise ValueError(
                f"lengths has {shortest}; task longppl needs more than short_context + "
                f"short_stride, {self.short_context + self.short_stride}"
            )

    def to_dict(self) -> dict[str, Any]:
        """What is measured, as JSON and YAML take it."""
        values = asdict(self)
        return {
            name: value
            for name, value in values.items()
            if name not in _ACTIONS and value not in (None, [])
        }

    def to_yaml(self) -> str:
        """As `to_dict`; `lrk-eval` reads it back to the same arguments."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)

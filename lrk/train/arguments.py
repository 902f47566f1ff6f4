"""Arguments of a training run: those of transformers, and what the recipe adds."""

import math
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

import torch
import transformers
import yaml
from transformers.trainer_pt_utils import AcceleratorConfig

from lrk.positions import SAMPLERS
from lrk.train.nearest import did_you_mean

KERNELS = ("rope", "attention", "cross_entropy")
DTYPES = ("float32", "bfloat16", "float16", "auto")
TRAIN_SHARE = 0.3
SHUFFLE_BUFFER = 256

# How a run was started, not what it is: left out of the resolved configuration.
_ACTIONS = frozenset({"dry_run", "overwrite_output_dir", "resume_from_checkpoint"})


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class LrkTrainingArguments(transformers.TrainingArguments):
    """`transformers.TrainingArguments` and the arguments of the recipe, checked when made.

    Defaults that differ from transformers': one sample a device and step, one epoch, every step
    logged, NaN losses shown, `bf16` wherever the processor multiplies it.

    Raises:
        ValueError: for a value that no run can have.
    """

    model_name_or_path: str | None = field(
        default=None, metadata=_help("folder or hub name of the pretrained model")
    )
    gguf_file: str | None = field(
        default=None, metadata=_help("GGUF file in that folder; its weights are dequantised")
    )
    dtype: str = field(
        default="float32", metadata=_help(f"dtype of the weights in training: {', '.join(DTYPES)}")
    )

    data: list[str] = field(
        default_factory=list,
        metadata=_help("files, folders, glob patterns or hub:OWNER/NAME to train on"),
    )
    eval_data: list[str] = field(
        default_factory=list, metadata=_help("the same, to evaluate on; never packed")
    )
    text_column: str = field(
        default="text", metadata=_help("column of a jsonl, parquet or hub data set with the text")
    )
    assistant_only: bool = field(
        default=True,
        metadata=_help("in messages, train on the assistant's turns; in prompts, on completions"),
    )
    pack: bool = field(
        default=True, metadata=_help("pack short documents and the ends of long ones into samples")
    )
    dataset_num_proc: int | None = field(default=None, metadata=_help("processes that tokenize"))
    streaming: bool = field(
        default=False,
        metadata=_help(
            "read the data as training goes (they may exceed the disk); needs max_steps"
        ),
    )
    shuffle_buffer: int | None = field(
        default=None,
        metadata=_help(
            f"samples of a stream among which the next is drawn (default: {SHUFFLE_BUFFER}); 0 "
            "leaves them in order"
        ),
    )

    target_length: int = field(default=131_072, metadata=_help("window to reach, in tokens"))
    train_length: int = field(  # type: ignore[assignment]
        default=None, metadata=_help(f"real tokens of a sample (default: {TRAIN_SHARE} x target)")
    )
    position_method: str = field(
        default="longrecipe", metadata=_help(f"one of {', '.join(SAMPLERS)}")
    )
    contiguous_share: float = field(
        default=0.3, metadata=_help("share of samples that keep ordinary positions")
    )
    rope_theta: float | None = field(
        default=None, metadata=_help("RoPE base (default: scaled_rope_theta)")
    )
    eval_lengths: list[int] | None = field(
        default=None,
        metadata=_help(
            "simulated lengths to evaluate at (default: train_length and target_length)"
        ),
    )
    eval_position_method: str = field(
        default="longrecipe", metadata=_help("as position_method, in evaluation")
    )

    kernels: dict[str, bool] = field(
        default_factory=lambda: dict.fromkeys(KERNELS, True),
        metadata=_help("which lrk operations run"),
    )

    lora_rank: int = field(
        default=0, metadata=_help("rank of LoRA adapters; 0 trains all parameters")
    )
    lora_alpha: int = field(
        default=16, metadata=_help("scale of LoRA adapters, divided by the rank")
    )
    lora_dropout: float = field(default=0.0, metadata=_help("dropout before LoRA adapters"))
    lora_targets: str | list[str] = field(
        default="all-linear", metadata=_help("modules that get LoRA adapters (default: all-linear)")
    )

    overwrite_output_dir: bool = field(
        default=False, metadata=_help("delete the run that output_dir holds")
    )
    dry_run: bool = field(
        default=False, metadata=_help("check everything, print the plan, and stop")
    )

    per_device_train_batch_size: int = field(default=1, metadata=_help("samples a device and step"))
    per_device_eval_batch_size: int = field(
        default=1, metadata=_help("samples a device and evaluation step")
    )
    num_train_epochs: float = field(default=1.0, metadata=_help("passes over the samples"))
    logging_steps: float = field(default=1.0, metadata=_help("steps between two logged losses"))
    logging_nan_inf_filter: bool = field(
        default=False, metadata=_help("show a mean instead of a NaN loss")
    )
    remove_unused_columns: bool = field(
        default=False, metadata=_help("must stay false: the collator needs all columns")
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata=_help("bf16 autocast (default: where the processor has bf16 arithmetic)"),
    )

    def __post_init__(self) -> None:
        # transformers rewrites values in its __post_init__: note first what was given.
        self._given = {item.name for item in fields(self) if _differs(self, item)}
        self._resolve()
        self._check()
        super().__post_init__()
        assert isinstance(self.accelerator_config, AcceleratorConfig)
        if self.accelerator_config.dispatch_batches is None:
            # accelerate's own choice is true for a stream.
            self.accelerator_config.dispatch_batches = False
        self._as_made: dict[str, Any] = self.to_dict()
        if self.n_gpu > 1:
            raise ValueError(
                f"one process sees {self.n_gpu} GPUs, over which packed documents cannot be "
                f"split: start one process a GPU, torchrun --nproc_per_node {self.n_gpu}"
            )
        if self.accelerator_config.dispatch_batches:
            raise ValueError(
                "accelerator_config.dispatch_batches must not be true: it slices batches by row, "
                "and the boundaries of packed documents have no rows"
            )

    def _resolve(self) -> None:
        """Fill in what depends on other arguments or on the machine."""
        if not self.output_dir:
            raise ValueError("output_dir is missing; it must name the folder of the run")
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.use_cpu:
            self.dataloader_pin_memory = False
        if self.bf16 is None:
            self.bf16 = not self.fp16 and _multiplies_bf16(self.use_cpu)
        if self.train_length is None:
            self.train_length = round(TRAIN_SHARE * self.target_length)
        if self.streaming and self.shuffle_buffer is None:
            self.shuffle_buffer = SHUFFLE_BUFFER
        for kernel in self.kernels:
            _require_one_of("kernels", kernel, KERNELS)
        self.kernels = {kernel: self.kernels.get(kernel, True) for kernel in KERNELS}
        if self.eval_lengths is None:
            skips = self.kernels["attention"] and self.target_length != self.train_length
            self.eval_lengths = [self.train_length, *([self.target_length] if skips else [])]

    def _check(self) -> None:
        if self.train_length < 2:
            raise ValueError(f"train_length is {self.train_length}; it must be at least 2")
        if self.target_length < self.train_length:
            raise ValueError(
                f"target_length is {self.target_length}, shorter than train_length "
                f"{self.train_length}; it must be at least as long"
            )
        _require_one_of("position_method", self.position_method, SAMPLERS)
        _require_one_of("eval_position_method", self.eval_position_method, SAMPLERS)
        _require_one_of("dtype", self.dtype, DTYPES)
        for name in ("contiguous_share", "lora_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or positive")
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise ValueError(
                f"max_steps is {self.max_steps} and num_train_epochs {self.num_train_epochs}; one "
                "of them must be positive"
            )
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank is {self.lora_rank}; it must be 0 or positive")
        if self.rope_theta is not None and self.rope_theta <= 0:
            raise ValueError(f"rope_theta is {self.rope_theta}; it must be positive")
        if min(self.eval_lengths or [], default=self.train_length) < self.train_length:
            raise ValueError(
                f"eval_lengths is {self.eval_lengths}; each must be at least train_length "
                f"{self.train_length}"
            )
        self._check_streaming()
        self._check_attention()
        self._check_conflicts()

    def _check_streaming(self) -> None:
        if not self.streaming:
            if self.shuffle_buffer is not None:
                raise ValueError(
                    f"shuffle_buffer is {self.shuffle_buffer} without streaming; samples that are "
                    "prepared beforehand are shuffled as a whole, so leave it empty"
                )
            return
        if self.max_steps <= 0:
            raise ValueError(
                f"max_steps is {self.max_steps} with streaming; it must be positive, because a "
                "stream does not say how many samples it holds"
            )
        if self.shuffle_buffer is not None and self.shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer is {self.shuffle_buffer}; it must be 0 or positive")
        if self.dataloader_num_workers > 1:
            raise ValueError(
                f"dataloader_num_workers is {self.dataloader_num_workers} with streaming; it must "
                "be 0 or 1, because where a sample begins depends on every document before it, so "
                "each worker would read and tokenize all of them"
            )
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy is {self.train_sampling_strategy!r} with streaming; the "
                "order of a stream is set by shuffle_buffer alone"
            )

    def _check_attention(self) -> None:
        if self.kernels["attention"]:
            return
        if self.position_method != "contiguous":
            raise ValueError(
                f"kernels.attention is false with position_method {self.position_method!r}: stock "
                "attention takes every skipped position for a new document, so use position_method "
                "'contiguous' or keep kernels.attention"
            )
        if max(self.eval_lengths or [0]) > self.train_length:
            raise ValueError(
                f"kernels.attention is false with eval_lengths {self.eval_lengths}: without it "
                f"only train_length {self.train_length} can be evaluated"
            )

    def _check_conflicts(self) -> None:
        """Arguments of transformers that would quietly undo the recipe."""
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be false: the collator needs all columns")
        if self.use_liger_kernel:
            raise ValueError("use_liger_kernel must be false: it patches what lrk patches")
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor is {self.label_smoothing_factor}; it must be 0: "
                "transformers smooths on logits, which the fused loss never forms"
            )
        if self.resume_from_checkpoint and self.overwrite_output_dir:
            raise ValueError(
                "resume_from_checkpoint and overwrite_output_dir exclude each other: the one "
                "continues a run, the other deletes it"
            )

    def to_yaml(self) -> str:
        """The recipe's arguments, and those of transformers that were not left at their default.

        `lrk-train` reads it back to the same arguments. How a run was started (`dry_run`,
        `overwrite_output_dir`, `resume_from_checkpoint`) is left out.
        """
        values = self.to_dict()
        changed = [
            name
            for name, value in values.items()
            if name in self._given or value != self._as_made[name]
        ]
        names = dict.fromkeys([*LrkTrainingArguments.__annotations__, *changed])
        chosen = {
            name: values[name]
            for name in names
            if name not in _ACTIONS and values[name] not in (None, [])
        }
        head = f"# Everything else has the default of transformers {transformers.__version__}.\n"
        return head + yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True, width=100)


def _differs(arguments: LrkTrainingArguments, item: Field) -> bool:
    """Whether an argument was given another value than its default."""
    default = item.default if item.default_factory is MISSING else item.default_factory()
    return getattr(arguments, item.name) != default


def _require_one_of(argument: str, value: str, allowed: Any) -> None:
    if value not in allowed:
        raise ValueError(
            f"{argument} {value!r} is unknown; it must be one of {', '.join(allowed)}"
            f"{did_you_mean(value, allowed)}"
        )


def _multiplies_bf16(on_cpu: bool) -> bool:
    """Whether bf16 is arithmetic of the processor; emulated, it is slower than float32."""
    if not on_cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))

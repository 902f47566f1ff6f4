"""Arguments of a training run: those of transformers, and what the recipe adds."""

import math
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

import torch
import transformers
import yaml
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.utils.import_utils import BITSANDBYTES_MIN_VERSION, is_bitsandbytes_available

from lrk.positions import SAMPLERS
from lrk.recipe.mixture import check_shares
from lrk.recipe.selection import BETWEEN_SENTENCES, POSITIONS, SELECTIONS, check_table
from lrk.recipe.upsample import check_upsampling
from lrk.train.nearest import did_you_mean

PLAIN, LONGCE, IMPACTFUL = TOKEN_LOSSES = ("plain", "longce", "impactful")
_OF_TOKEN_LOSS = {
    "impactful_weight": IMPACTFUL,
    "longce_short_context": LONGCE,
    "longce_short_stride": LONGCE,
    "longce_max_weight": LONGCE,
}
KERNELS = ("rope", "attention", "cross_entropy")
DTYPES = ("float32", "bfloat16", "float16", "auto")
HOST_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "sgd", "adafactor")
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
    data_shares: list[float] | None = field(
        default=None,
        metadata=_help("share of the samples that each source of data gives (default: all of it)"),
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

    upsample_longer_than: int | None = field(
        default=None,
        metadata=_help("prepared documents of more tokens are read more often (default: none)"),
    )
    upsample_factor: float = field(
        default=5.0,
        metadata=_help("their weight beside shorter ones of a source, which keeps its tokens"),
    )

    target_length: int = field(default=131_072, metadata=_help("window to reach, in tokens"))
    train_length: int = field(  # type: ignore[assignment]
        default=None, metadata=_help(f"real tokens of a sample (default: {TRAIN_SHARE} x target)")
    )
    selection: str | None = field(
        default=None,
        metadata=_help(
            "how a sample's text is chosen from target_length tokens of a document: one of "
            f"{', '.join(SELECTIONS)} (default: it is train_length tokens in a row)"
        ),
    )
    impactful_tokens: str | None = field(
        default=None,
        metadata=_help("table of lrk-data analyze, for selection or token_loss impactful"),
    )
    position_method: str = field(
        default="longrecipe", metadata=_help(f"one of {', '.join(SAMPLERS)}")
    )
    end_prompt: str | None = field(
        default=None,
        metadata=_help("text that ends every sample, for position_method endprompt"),
    )
    pin_end: bool = field(
        default=False,
        metadata=_help("let longrecipe end every sample at the last position of the target"),
    )
    position_reach: float = field(
        default=1.0, metadata=_help("positions are drawn over so many target_lengths")
    )
    attention_temperature: float = field(
        default=1.0, metadata=_help("softmax temperature of attention in training")
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

    token_loss: str = field(
        default=PLAIN,
        metadata=_help(f"how tokens are weighed in training: one of {', '.join(TOKEN_LOSSES)}"),
    )
    impactful_weight: float = field(
        default=2.0, metadata=_help("token_loss impactful: weight of its types beside others")
    )
    longce_short_context: int = field(
        default=4096, metadata=_help("token_loss longce: short context, in positions")
    )
    longce_short_stride: int = field(
        default=1024,
        metadata=_help("token_loss longce: positions between short contexts; more is faster"),
    )
    longce_max_weight: float = field(
        default=5.0, metadata=_help("token_loss longce: largest weight of a token")
    )

    kernels: dict[str, bool] = field(
        default_factory=lambda: dict.fromkeys(KERNELS, True),
        metadata=_help("which lrk operations run"),
    )
    keep_attention: bool = field(
        default=False,
        metadata=_help("checkpoints keep what attention made: more memory, less time"),
    )
    layers_per_checkpoint: int = field(
        default=1, metadata=_help("layers from one checkpoint to the next")
    )
    tile_tokens: int = field(
        default=0,
        metadata=_help("compute norms and MLPs in tiles of so many tokens; 0 computes them whole"),
    )
    offload_activations: bool = field(
        default=False, metadata=_help("hold checkpoints in host memory")
    )
    optimizer_in_backward: bool = field(
        default=False,
        metadata=_help("update each parameter, and free its gradient, as soon as it has one"),
    )
    offload_optimizer: bool = field(
        default=False, metadata=_help("hold the optimizer's state in host memory, and step there")
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
    load_in_4bit: bool = field(
        default=False,
        metadata=_help("QLoRA: the frozen linear layers in 4 bits, by bitsandbytes (NF4)"),
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
        if self.optimizer_in_backward and self.world_size > 1:
            raise ValueError(
                f"optimizer_in_backward is true with {self.world_size} processes; it needs one: it "
                "would take each process's gradients before they are averaged"
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
        if not 1 <= self.position_reach < math.inf:
            raise ValueError(f"position_reach is {self.position_reach}; it must be at least 1")
        if not 0 < self.attention_temperature < math.inf:
            raise ValueError(
                f"attention_temperature is {self.attention_temperature}; it must be positive"
            )
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
        self._check_lora()
        if self.rope_theta is not None and self.rope_theta <= 0:
            raise ValueError(f"rope_theta is {self.rope_theta}; it must be positive")
        if min(self.eval_lengths or [], default=self.train_length) < self.train_length:
            raise ValueError(
                f"eval_lengths is {self.eval_lengths}; each must be at least train_length "
                f"{self.train_length}"
            )
        self._check_contiguous()
        self._check_selection()
        self._check_token_loss()
        self._check_mixture()
        self._check_streaming()
        self._check_attention()
        self._check_memory()
        self._check_conflicts()

    def _check_lora(self) -> None:
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank is {self.lora_rank}; it must be 0 or positive")
        if not self.load_in_4bit:
            return
        if not self.lora_rank:
            raise ValueError(
                "load_in_4bit is true with lora_rank 0; weights of 4 bits are not trained "
                "themselves, so lora_rank must be positive"
            )
        if self.gguf_file is not None:
            raise ValueError(
                f"load_in_4bit is true with gguf_file {self.gguf_file!r}, whose weights are "
                "quantised in another way; choose one of the two"
            )
        if not is_bitsandbytes_available():
            raise ValueError(
                "load_in_4bit is true, but bitsandbytes "
                f"{BITSANDBYTES_MIN_VERSION} or newer is not installed; `pip install lrk[qlora]`"
            )

    def _check_contiguous(self) -> None:
        for name in ("position_reach", "attention_temperature"):
            if self.position_method == "contiguous" and getattr(self, name) != 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)} with position_method 'contiguous'; it is for "
                    "positions that are spread, so leave it at 1"
                )

    def _check_selection(self) -> None:
        if self.selection is not None:
            _require_one_of("selection", self.selection, SELECTIONS)
        check_table(self.selection, self.selection_table)
        if self.upsample_longer_than is None:
            if "upsample_factor" in self._given:
                raise ValueError(
                    f"upsample_factor is {self.upsample_factor} without upsample_longer_than; it "
                    "is the weight of documents that are longer, so give both or neither"
                )
        else:
            check_upsampling(self.upsample_longer_than, self.upsample_factor)
            if self.streaming:
                raise ValueError(
                    f"upsample_longer_than is {self.upsample_longer_than} with streaming; how "
                    "often a document is read depends on the lengths of all of its source"
                )
        if self.end_prompt is not None and self.position_method != "endprompt":
            raise ValueError(
                f"end_prompt is given with position_method {self.position_method!r}; it belongs to "
                "'endprompt'"
            )
        if self.pin_end and self.position_method != "longrecipe":
            raise ValueError(
                f"pin_end is true with position_method {self.position_method!r}; it belongs to "
                "'longrecipe'"
            )
        if self.selection == POSITIONS and self.position_method in BETWEEN_SENTENCES:
            raise ValueError(
                "selection 'positions' takes the text from where the positions are, but "
                f"position_method {self.position_method!r} puts its gaps between the sentences of "
                "a text that is there already; choose another of the two"
            )

    @property
    def reach_length(self) -> int:
        """The window that positions are drawn over in training."""
        return round(self.position_reach * self.target_length)

    @property
    def selection_span(self) -> int:
        """Tokens that a sample's text is chosen from: where it is by position, all of them."""
        return self.reach_length if self.selection == POSITIONS else self.target_length

    @property
    def selection_table(self) -> str | None:
        """`impactful_tokens`, unless the loss alone reads it."""
        loss_alone = self.token_loss == IMPACTFUL and self.selection != IMPACTFUL
        return None if loss_alone else self.impactful_tokens

    def _check_token_loss(self) -> None:
        _require_one_of("token_loss", self.token_loss, TOKEN_LOSSES)
        for name in ("longce_short_context", "longce_short_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("impactful_weight", "longce_max_weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        for name, token_loss in _OF_TOKEN_LOSS.items():
            if name in self._given and self.token_loss != token_loss:
                raise ValueError(
                    f"{name} is {getattr(self, name)} with token_loss {self.token_loss!r}; it "
                    f"belongs to {token_loss!r}"
                )
        if self.token_loss != PLAIN and not self.kernels["cross_entropy"]:
            raise ValueError(
                f"token_loss is {self.token_loss!r} with kernels.cross_entropy false; the loss of "
                "transformers takes no weights, so keep kernels.cross_entropy"
            )
        if self.token_loss == IMPACTFUL and self.impactful_tokens is None:
            raise ValueError(
                "token_loss is 'impactful' without impactful_tokens; it must name a table of "
                "lrk-data analyze"
            )
        if self.token_loss == LONGCE:
            self._check_longce()

    def _check_longce(self) -> None:
        if not self.kernels["attention"]:
            raise ValueError(
                "token_loss is 'longce' with kernels.attention false; short contexts are packed as "
                "documents, which needs it"
            )
        if self.fsdp or self.deepspeed:
            raise ValueError(
                "token_loss is 'longce' with fsdp or deepspeed; processes compute different "
                "numbers of short contexts, so each needs all weights"
            )
        short = self.longce_short_context + self.longce_short_stride
        if short >= self.target_length:
            raise ValueError(
                f"token_loss is 'longce' with longce_short_context {self.longce_short_context} and "
                f"longce_short_stride {self.longce_short_stride}; their sum must be less than "
                f"target_length {self.target_length}, or no token has more than a short context"
            )

    def _check_mixture(self) -> None:
        if self.data_shares is None:
            return
        check_shares(self.data_shares, len(self.data))
        if self.streaming:
            raise ValueError(
                "data_shares is given with streaming; a stream reads one source after the other, "
                "so leave one of them out"
            )

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

    @property
    def own_checkpointing(self) -> list[str]:
        """What is asked of checkpointing that `lrk.memory.checkpointing` adds to transformers'."""
        defaults = {
            "keep_attention": False,
            "offload_activations": False,
            "layers_per_checkpoint": 1,
        }
        return [name for name, default in defaults.items() if getattr(self, name) != default]

    def _check_memory(self) -> None:
        for name, least in (("tile_tokens", 0), ("layers_per_checkpoint", 1)):
            if getattr(self, name) < least:
                allowed = "0 or positive" if least == 0 else f"at least {least}"
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {allowed}")
        # Older releases of transformers know the second name only.
        checkpoints = getattr(self, "activation_checkpointing", None) or self.gradient_checkpointing
        options = getattr(self, "activation_checkpointing_kwargs", None)
        for name in self.own_checkpointing:
            said = f"{name} is {str(getattr(self, name)).lower()}"
            if not checkpoints:
                raise ValueError(f"{said}; it needs activation_checkpointing")
            if options or self.gradient_checkpointing_kwargs:
                raise ValueError(
                    f"{said} with activation_checkpointing_kwargs; give one of them: lrk sets its "
                    "own"
                )
            if name != "offload_activations" and not self.kernels["attention"]:
                raise ValueError(f"{said}; it needs kernels.attention")
        if self.optimizer_in_backward:
            for name, needed in (
                ("gradient_accumulation_steps", 1),
                ("max_grad_norm", 0),
                ("fp16", False),
            ):
                if getattr(self, name) != needed:
                    raise ValueError(
                        f"{name} is {getattr(self, name)} with optimizer_in_backward; it must be "
                        f"{needed}: gradients are gone before they could be summed, clipped or "
                        "unscaled"
                    )
        optim = str(getattr(self.optim, "value", self.optim))
        if self.offload_optimizer and optim not in HOST_OPTIMIZERS:
            raise ValueError(
                f"optim is {optim} with offload_optimizer; it must be one of "
                f"{', '.join(HOST_OPTIMIZERS)}"
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

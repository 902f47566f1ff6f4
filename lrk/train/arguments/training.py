"""All arguments of a training run, and what belongs to no subject alone."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

import torch
import transformers
import yaml
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_pt_utils import AcceleratorConfig

from lrk.recipe.selection import POSITIONS
from lrk.train.arguments import (
    data,
    distillation,
    evaluation,
    kernels,
    lora,
    losses,
    memory,
    model,
    positions,
    prediction,
    processes,
    ranges,
    samples,
    saving,
)
from lrk.train.arguments.argument import help_text
from lrk.train.arguments.losses import IMPACTFUL
from lrk.train.engine import engine_of, launched_with_deepspeed

# How a run was started, not what it is: left out of the resolved configuration.
_ACTIONS = frozenset(
    {
        *("dry_run", "gpu", "dollars_per_hour"),
        *("overwrite_output_dir", "resume_from_checkpoint"),
    }
)


# Files and packages that transformers opens when the arguments are made.
_OPENED = ("deepspeed", "accelerator_config", "fsdp_config", "parallelism_config")


# Python takes the fields of the last base first: read upwards, this is their order.
@dataclass
class LrkTrainingArguments(
    prediction.PredictionArguments,
    saving.SavingArguments,
    lora.LoraArguments,
    processes.ProcessArguments,
    memory.MemoryArguments,
    kernels.KernelArguments,
    distillation.DistillationArguments,
    losses.LossArguments,
    positions.PositionArguments,
    samples.SampleArguments,
    evaluation.EvaluationArguments,
    data.DataArguments,
    model.ModelArguments,
    transformers.TrainingArguments,
):
    """`transformers.TrainingArguments` and the arguments of the recipe, checked when made.

    Defaults that differ from transformers': one sample a device and step, one epoch, every step
    logged, NaN losses shown, `bf16` wherever the processor multiplies it.

    Raises:
        ValueError: for a value that no run can have.
    """

    overwrite_output_dir: bool = field(
        default=False, metadata=help_text("delete the run that output_dir holds")
    )
    dry_run: bool = field(
        default=False, metadata=help_text("check everything, print the plan, and stop")
    )

    per_device_train_batch_size: int = field(
        default=1, metadata=help_text("samples a device and step")
    )
    per_device_eval_batch_size: int = field(
        default=1, metadata=help_text("samples a device and evaluation step")
    )
    num_train_epochs: float = field(default=1.0, metadata=help_text("passes over the samples"))
    logging_steps: float = field(default=1.0, metadata=help_text("steps between two logged losses"))
    logging_nan_inf_filter: bool = field(
        default=False, metadata=help_text("show a mean instead of a NaN loss")
    )
    remove_unused_columns: bool = field(
        default=False, metadata=help_text("must stay false: the collator needs all columns")
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata=help_text("bf16 autocast (default: where the processor has bf16 arithmetic)"),
    )

    eval_on_start: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata=help_text(
            "evaluate the untouched model before the first step (default: if there are eval_data)"
        ),
    )
    fsdp: bool | str | None = field(  # type: ignore[assignment]
        default=None,
        metadata=help_text("shard the weights over all processes, by FSDP2 (fsdp_config: how)"),
    )

    def __post_init__(self) -> None:
        ranges.check_given(self)
        # transformers rewrites values in its __post_init__: note first what was given.
        self._given = {item.name for item in fields(self) if _differs(self, item)}
        self._resolve()
        self._check()
        try:
            with warnings.catch_warnings():
                # The older name is the one that every supported transformers knows.
                warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)
                super().__post_init__()
        except (ImportError, OSError, TypeError, KeyError, NotImplementedError) as error:
            # A configuration that is half made would stay that of the process.
            unset_hf_deepspeed_config()
            given = [name for name in _OPENED if name in self._given]
            what = " and ".join(f"{name} is {getattr(self, name)!r}" for name in given)
            if not given and launched_with_deepspeed():
                what = "accelerate launch asks for DeepSpeed"
            install = "; `pip install deepspeed`" if isinstance(error, ImportError) else ""
            said = " ".join(f"{what or 'an argument'}, which cannot be used: {error}".split())
            raise ValueError(said + install) from error
        assert isinstance(self.accelerator_config, AcceleratorConfig)
        if self.accelerator_config.dispatch_batches is None:
            # accelerate's own choice is true for a stream.
            self.accelerator_config.dispatch_batches = False
        memory.resolve_engine(self, engine_of(self))
        self._as_made: dict[str, Any] = self.to_dict()
        if self.n_gpu > 1:
            raise ValueError(
                f"one process sees {self.n_gpu} GPUs, over which packed documents cannot be "
                f"split: start one process a GPU, torchrun --nproc_per_node {self.n_gpu}"
            )
        engine = processes.check(self)
        memory.check_engine(self, engine)
        lora.check_engine(self, engine)
        distillation.check_engine(self, engine)
        saving.check_engine(self, engine)
        if self.accelerator_config.dispatch_batches:
            raise ValueError(
                "accelerator_config.dispatch_batches must not be true: it slices batches by row, "
                "and the boundaries of packed documents have no rows"
            )

    @staticmethod
    def own_names() -> list[str]:
        """Arguments of lrk, then those of transformers that it gives another default."""
        *subjects, _ = LrkTrainingArguments.__bases__
        classes = (*reversed(subjects), LrkTrainingArguments)
        return [name for each in classes for name in each.__annotations__]

    def is_given(self, name: str) -> bool:
        """Whether an argument was given another value than its default."""
        return name in self._given

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

    def __getstate__(self) -> dict[str, Any]:
        """Without secrets and process groups: transformers pickles the arguments into every
        checkpoint."""
        kept = without_secrets(self.__dict__)
        if self.parallelism_config is not None:
            kept["parallelism_config"] = copy.copy(self.parallelism_config)
            kept["parallelism_config"].device_mesh = None
        return dict.fromkeys(self.__dict__.keys() - kept.keys()) | kept

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
        processes.resolve(self)
        samples.resolve(self)
        data.resolve(self)
        kernels.resolve(self)
        positions.resolve(self)
        evaluation.resolve(self)

    def _check(self) -> None:
        """Refuse what no run can have. Of several faults the first one here is named."""
        samples.check_lengths(self)
        positions.check_methods(self)
        model.check(self)
        positions.check_spread(self)
        lora.check_dropout(self)
        ranges.check_ranges(self)
        lora.check(self)
        positions.check_rope(self)
        positions.check_window(self)
        positions.check_contiguous(self)
        samples.check_selection(self)
        data.check_upsampled(self)
        positions.check_of_method(self)
        losses.check(self)
        distillation.check(self)
        data.check_mixture(self)
        data.check_streaming(self)
        kernels.check(self)
        memory.check(self)
        saving.check(self)
        prediction.check(self)
        self._check_conflicts()

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

        `lrk-train` reads it back to the same arguments. How a run was started (`dry_run` and what
        it predicts for, `overwrite_output_dir`, `resume_from_checkpoint`) is left out, and so are
        secrets.
        """
        values = without_secrets(self.to_dict())
        changed = [
            name
            for name, value in values.items()
            if self.is_given(name) or value != self._as_made[name]
        ]
        names = dict.fromkeys([*self.own_names(), *changed])
        chosen = {
            name: values[name]
            for name in names
            if name not in _ACTIONS and values[name] not in (None, [])
        }
        head = f"# Everything else has the default of transformers {transformers.__version__}.\n"
        return head + yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True, width=100)


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Less what may not be written down: tokens of the hub, named as transformers knows them."""
    return {name: value for name, value in values.items() if not name.endswith("_token")}


def _differs(arguments: LrkTrainingArguments, item: Field) -> bool:
    """Whether an argument was given another value than its default."""
    default = item.default if item.default_factory is MISSING else item.default_factory()
    return getattr(arguments, item.name) != default


def _multiplies_bf16(on_cpu: bool) -> bool:
    """Whether bf16 is arithmetic of the processor; emulated, it is slower than float32."""
    if not on_cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))

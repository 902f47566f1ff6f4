"""The trainer: that of transformers, fed with samples whose positions are drawn as it goes."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Subset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.training_args import TrainingArguments

from lrk.atomic import write_text
from lrk.fsdp import keep_digits
from lrk.hf.causal_lm import LrkForCausalLM
from lrk.peak_memory import peak_memory_gib
from lrk.recipe import Collator, PlacedSamples, Placement, Sample, Samples, SampleStream
from lrk.recipe.mixture import MixedSamples
from lrk.recipe.placement import PlacedSample
from lrk.recipe.tokens import prompt_ids
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.arguments.evaluation import evenly_spaced
from lrk.train.finite import SAMPLE_INDICES
from lrk.train.lean import LeanSteps
from lrk.train.model_card import MARK, model_card
from lrk.train.new_distances import NewDistances
from lrk.train.run_folder import METRICS_FILE, MODEL_CARD_FILE
from lrk.train.telemetry import MetricsFile, ProgressBar, Throughput
from lrk.train.token_loss import WeightedTokens
from lrk.train.untouched import EvaluatesUntouched
from lrk.transformers_4 import make_readable

logger = logging.getLogger(__name__)


class LrkTrainer(EvaluatesUntouched, WeightedTokens, LeanSteps):
    """`transformers.Trainer` on `Samples` or a `SampleStream`.

    Args:
        model: patched by `lrk.patch`, unless `arguments.position_method` is contiguous.
        tokenizer: saved with each checkpoint.
        samples: to train on; positions follow from (`arguments.seed`, epoch, index).
            A stream has no end, so it stays in epoch 0, and its indices run on.
        arguments: of the run.
        evaluation: samples to evaluate on at each of `arguments.eval_lengths`, under the names
            `eval_LENGTH_loss`.

    Attributes:
        base_model: that the model card names; a stage starts from another one than the whole run.
        checkpoint: that the run goes on from, or None.
        window_before: of the model that the run began with, in tokens.
        new_distances: what is trained beyond the model's window, for the model card.
        stretches: whether the run changed the RoPE of the model that it began with, for the model
            card too.

    `callbacks` beside the trainer's own can be added with `add_callback`.
    """

    args: LrkTrainingArguments

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        samples: Samples | MixedSamples | SampleStream,
        arguments: LrkTrainingArguments,
        evaluation: Samples | None = None,
    ) -> None:
        collator = Collator(training_placement(arguments, tokenizer))
        self.throughput = Throughput()
        self.base_model = arguments.model_name_or_path
        self.checkpoint: str | None = None
        self.window_before = arguments.target_length
        self.new_distances: NewDistances | None = None
        self.stretches = True
        metrics = Path(arguments.output_dir or "") / METRICS_FILE
        super().__init__(
            model=model,
            args=arguments,
            data_collator=_WithIndices(collator),  # type: ignore[arg-type]
            train_dataset=samples,
            eval_dataset=None if evaluation is None else _at_lengths(evaluation, arguments),
            processing_class=tokenizer,
            callbacks=[_EpochOfPositions(collator), self.throughput, MetricsFile(metrics)],
        )
        if not arguments.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(ProgressBar)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers'; a run that is ended by an exception leaves the terminal as it was."""
        try:
            return super().train(*args, **kwargs)
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, ProgressBar):
                    callback.close()

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.engine.check_made(self.accelerator.distributed_type)
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None:
            keep_digits(plugin)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        self.throughput.tokens += inputs["input_ids"].numel() * self.engine.data_parallel
        if self.args.attention_temperature != 1:
            inputs["attention_temperature"] = self.args.attention_temperature
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Evaluation averages losses of samples: each is the mean over its own labels.

        (transformers divides by the labels of all processes, some of whose last samples it drops.)
        """
        items = num_items_in_batch if model.training else None
        return super().compute_loss(model, inputs, return_outputs, items)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        if prediction_loss_only and isinstance(self._unwrapped(model), LrkForCausalLM):
            inputs = {**inputs, "output_logits": False}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.state.global_step == self.throughput.first_step:
            logs.pop("train_loss", None)  # of no steps
        if "loss" in logs:
            logs["tokens_per_second"] = self.throughput.read()
            logs["peak_memory_gib"] = peak_memory_gib(self.args.device)
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The model and the tokenizer; so that transformers 4 reads them, where this is no
        checkpoint."""
        super()._save(output_dir, state_dict)
        if self.args.should_save and not self.writes_checkpoint:
            unseen = make_readable(Path(output_dir or self.args.output_dir or ""))
            if unseen:
                logger.warning(unseen)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write README.md, unless somebody else wrote the one that is there.

        transformers asks for it before it pushes to the hub; its own arguments are not needed.
        """
        path = Path(self.args.output_dir or "") / MODEL_CARD_FILE
        is_ours = not path.exists() or MARK.encode() in path.read_bytes()
        if self.is_world_process_zero() and is_ours:
            config = self.accelerator.unwrap_model(self.model).config
            history = self.state.log_history
            card = model_card(
                self.args,
                config,
                history,
                self.base_model,
                self.new_distances,
                self.stretches,
                self.window_before,
            )
            write_text(path, card)


def training_placement(
    arguments: LrkTrainingArguments, tokenizer: PreTrainedTokenizerBase
) -> Placement:
    """How the samples of a run are laid out."""
    return Placement(
        target_length=arguments.reach_length,
        method=arguments.position_method,
        contiguous_share=arguments.contiguous_share,
        seed=arguments.seed,
        train_length=arguments.train_length,
        pin_end=arguments.pin_end,
        ending=prompt_ids(arguments.end_prompt, tokenizer),
    )


def _at_lengths(
    evaluation: Samples, arguments: LrkTrainingArguments
) -> dict[str, Subset[PlacedSample]]:
    chosen = evenly_spaced(len(evaluation), arguments.eval_samples)
    return {
        str(length): Subset(
            PlacedSamples(
                evaluation, Placement(length, arguments.eval_position_method, seed=arguments.seed)
            ),
            chosen,
        )
        for length in arguments.eval_lengths or []
    }


class _WithIndices:
    """A collator that also says which samples are in the batch."""

    def __init__(self, collator: Collator) -> None:
        self._collator = collator

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        indices = [sample["index"] for sample in samples]
        return {**self._collator(samples), SAMPLE_INDICES: indices}


class _EpochOfPositions(TrainerCallback):
    """Tells the collator which epoch begins.

    A run that is resumed inside an epoch begins with a fraction, and rounding would be off by one
    in its second half: the floor it is.
    """

    def __init__(self, collator: Collator) -> None:
        self._collator = collator

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._collator.set_epoch(math.floor(state.epoch or 0))

"""A training run from its first check to the saved model."""

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lrk.hf import patch
from lrk.recipe import Samples, load_documents, tokenize
from lrk.train import run_folder
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.extension import extend
from lrk.train.lora import add_lora
from lrk.train.loss_curve import draw_loss_curve
from lrk.train.pretrained import check_vocabulary, load_config, load_model, load_tokenizer
from lrk.train.trainer import LrkTrainer


def train(arguments: LrkTrainingArguments) -> LrkTrainer:
    """All that `lrk-train` does, after parsing."""
    return run(set_up(arguments))


def set_up(arguments: LrkTrainingArguments) -> LrkTrainer:
    """Load everything that the arguments name. Small things come first: errors show early.

    Raises:
        ValueError: in one sentence, for anything that the arguments get wrong.
    """
    run_folder.check(arguments)
    config = load_config(arguments)
    tokenizer = load_tokenizer(arguments, config)
    samples, evaluation = load_samples(arguments, tokenizer)
    return build_trainer(load_model(arguments), tokenizer, samples, arguments, evaluation)


def load_samples(
    arguments: LrkTrainingArguments, tokenizer: PreTrainedTokenizerBase
) -> tuple[Samples, Samples | None]:
    """The samples to train on, and those to evaluate on, if there are any."""
    if arguments.eval_strategy != "no" and not arguments.eval_data:
        raise ValueError(
            "eval_data is empty; with an eval_strategy it must name what to evaluate on"
        )

    def samples_of(sources: list[str], pack: bool) -> Samples:
        documents = load_documents(sources, arguments.text_column)
        tokenized = tokenize(documents, tokenizer, arguments.dataset_num_proc)
        return Samples(tokenized, arguments.train_length, pack)

    with arguments.main_process_first(desc="preparing the data"):
        samples = samples_of(arguments.data, arguments.pack)
        # A packed sample would not span the length that it is evaluated at.
        evaluation = samples_of(arguments.eval_data, False) if arguments.eval_data else None
    return samples, evaluation


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Samples,
    arguments: LrkTrainingArguments,
    evaluation: Samples | None = None,
) -> LrkTrainer:
    """Extend and patch a loaded model, add LoRA if asked, and make the trainer of the run.

    The model is changed in place: its RoPE base, its config, its classes (`lrk.unpatch` undoes
    the last).

    Raises:
        ValueError: if the output folder holds another run, tokenizer and model do not fit, or the
            model cannot be extended or patched.
    """
    arguments.resume_from_checkpoint = run_folder.check(arguments)
    check_vocabulary(tokenizer, model.config.vocab_size)
    extend(model, arguments.target_length, arguments.rope_theta)
    tokenizer.model_max_length = model.config.max_position_embeddings
    patch(model, **arguments.kernels)
    trained = add_lora(model, arguments) if arguments.lora_rank else model
    return LrkTrainer(trained, tokenizer, samples, arguments, evaluation)


def run(trainer: LrkTrainer) -> LrkTrainer:
    """Train, evaluate, save; `trainer.model` is then the model that was saved.

    The output folder ends up with the model and tokenizer as any program that knows transformers
    loads them, `config.yaml`, `metrics.jsonl`, `loss.png`, the checkpoints, and `adapter` if LoRA
    was trained (the model has it merged in).
    """
    arguments = trainer.args
    folder = Path(arguments.output_dir or "")
    # No process may write before all have seen what the folder holds.
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        run_folder.clear(arguments)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / run_folder.CONFIG_FILE).write_text(arguments.to_yaml(), encoding="utf-8")
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    if trainer.eval_dataset is not None and not _evaluated_at_the_end(trainer):
        trainer.evaluate()
    save(trainer, folder)
    if trainer.is_world_process_zero():
        draw_loss_curve(folder / run_folder.METRICS_FILE, folder / run_folder.LOSS_CURVE_FILE)
    return trainer


def save(trainer: LrkTrainer, folder: Path) -> None:
    """Write model and tokenizer in the stock format, adapters merged into the weights."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        if trainer.is_world_process_zero():
            model.save_pretrained(str(folder / run_folder.ADAPTER_FOLDER))
        trainer.model = model = model.merge_and_unload()
    # Training switches the cache off, but who loads the model wants to generate with it.
    model.config.use_cache = True
    trainer.save_model(str(folder))
    model.config.use_cache = trainer.args.use_cache


def _evaluated_at_the_end(trainer: LrkTrainer) -> bool:
    return any(
        row["step"] == trainer.state.global_step and any(name.startswith("eval_") for name in row)
        for row in trainer.state.log_history
    )

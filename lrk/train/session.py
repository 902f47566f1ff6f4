"""A training run from its first check to the saved model."""

import copy
import json
import sys
from contextlib import ExitStack, nullcontext
from itertools import count
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lrk import atomic
from lrk.env import environment
from lrk.hf import patch
from lrk.hf.architectures import text_config
from lrk.hf.backends import installed_attention
from lrk.hf.distillation import ORIGINAL
from lrk.lock import locked
from lrk.recipe import (
    Samples,
    SampleStream,
    load_documents,
    selection_of,
    stream_documents,
    tokenize,
)
from lrk.recipe.mixture import MixedSamples
from lrk.recipe.prepared import is_prepared, open_prepared
from lrk.recipe.selection import Selection
from lrk.recipe.tokens import prompt_ids
from lrk.recipe.upsample import length_upsampled
from lrk.share import Share, local_share
from lrk.train import identity, run_folder
from lrk.train.announcement import beginning, ending
from lrk.train.arguments import LrkTrainingArguments
from lrk.train.arguments.positions import rope_plan
from lrk.train.collective import raised_by_all
from lrk.train.disk_space import check_disk_space
from lrk.train.distillation import frozen_teacher, short_length
from lrk.train.engine import ZERO_3, engine_of
from lrk.train.extension import extend
from lrk.train.gathering import gathered
from lrk.train.lora import add_lora, check_adapters, merge_lora
from lrk.train.loss_curve import draw_loss_curve
from lrk.train.new_distances import check_new_distances
from lrk.train.preflight import check_late_parts
from lrk.train.pretrained import (
    check_attention_fits,
    check_vocabulary,
    load_config,
    load_model,
    load_tokenizer,
)
from lrk.train.savable import check_hub, check_savable
from lrk.train.steps import steps_of
from lrk.train.trainer import LrkTrainer, training_placement


def train(arguments: LrkTrainingArguments) -> LrkTrainer:
    """All that `lrk-train` does, after parsing; what it does and did is printed."""
    trainer = set_up(arguments)
    announce(trainer)
    run(trainer)
    if trainer.is_world_process_zero():
        history = trainer.state.log_history
        print(*ending(arguments, history, trainer.base_model, trainer.window_before), sep="\n")
    return trainer


def announce(trainer: LrkTrainer) -> None:
    """Print what a run is about to do, in its main process."""
    if trainer.is_world_process_zero():
        print(*beginning(trainer), sep="\n", flush=True)


def set_up(
    arguments: LrkTrainingArguments,
    base_model: str | None = None,
    original: PretrainedConfig | None = None,
) -> LrkTrainer:
    """Load everything that the arguments name. Small things come first: errors show early.

    Args:
        base_model: in a stage, what the whole run begins with.
        original: in a stage, the config of that.

    Raises:
        ValueError: in one sentence, for anything that the arguments get wrong.
    """
    run_folder.check_together(arguments)
    with raised_by_all():
        installed_attention(arguments.kernels["attention"])
        config = load_config(arguments, original)
        check_attention_fits(arguments, config)
        check_adapters(config, arguments)
        check_late_parts(arguments, config)
        check_hub(arguments)
        tokenizer = load_tokenizer(arguments, config)
        samples, evaluation = load_samples(arguments, tokenizer)
        check_disk_space(arguments, config, steps_of(arguments, samples))
        reach, window = arguments.target_length, config.max_position_embeddings
        short_length(arguments, window)
        placement = training_placement(arguments, tokenizer)
        new_distances = check_new_distances(samples, placement, reach, window, config)
    with raised_by_all():
        model = load_model(arguments)
    trainer = build_trainer(model, tokenizer, samples, arguments, evaluation, base_model, original)
    trainer.new_distances = new_distances
    return trainer


def load_samples(
    arguments: LrkTrainingArguments, tokenizer: PreTrainedTokenizerBase
) -> tuple[Samples | MixedSamples | SampleStream, Samples | None]:
    """The samples to train on, and those to evaluate on, if there are any.

    No process waits for another at a barrier, whose limit a large corpus exceeds: of those that
    share a cache one tokenizes (`tokenize`), and of those on a machine each checks some hashes.
    """
    selection = check_data(arguments, tokenizer)
    length = text_length(arguments, tokenizer)
    samples: Samples | MixedSamples | SampleStream
    if arguments.streaming:
        samples = _stream(arguments, tokenizer, selection)
    elif arguments.data_shares is not None:
        samples = _mixed(arguments, tokenizer, selection)
    else:
        documents = _tokenized(arguments, tokenizer, arguments.data, upsample=True)
        samples = Samples(documents, length, arguments.pack, selection)
    return samples, evaluation_samples(arguments, tokenizer)


def check_data(
    arguments: LrkTrainingArguments, tokenizer: PreTrainedTokenizerBase
) -> Selection | None:
    """Refuse, before documents are read, what makes no samples of a run.

    Returns:
        The selection of the run.
    """
    if arguments.eval_strategy != "no" and not arguments.eval_data:
        raise ValueError(
            "eval_data is empty; with an eval_strategy it must name what to evaluate on"
        )
    for sources in data_groups(arguments):
        prepared = [source for source in sources if is_prepared(source)]
        if prepared and len(prepared) < len(sources):
            raise ValueError(
                f"data mix the prepared folder {prepared[0]!r} with documents; prepare all or none"
            )
    for source in arguments.data:
        if arguments.streaming and is_prepared(source):
            raise ValueError(
                f"data source {source!r} is prepared and read where it lies: leave streaming false"
            )
        if arguments.upsample_longer_than is not None and not is_prepared(source):
            raise ValueError(
                f"upsample_longer_than is {arguments.upsample_longer_than}, but data are not "
                "prepared: it needs the folder of lrk-data prepare, which notes the source of each "
                "document"
            )
    return selection_of(
        arguments.selection,
        arguments.selection_span,
        tokenizer,
        arguments.selection_table,
        arguments.seed,
    )


def data_groups(arguments: LrkTrainingArguments) -> list[list[str]]:
    """The sources that make samples together: of training, and of evaluation if there is any."""
    apart = arguments.data_shares is not None
    training = [[source] for source in arguments.data] if apart else [arguments.data]
    return [*training, *([arguments.eval_data] if arguments.eval_data else [])]


def evaluation_samples(
    arguments: LrkTrainingArguments, tokenizer: PreTrainedTokenizerBase
) -> Samples | None:
    """The samples to evaluate on, if there are any."""
    if not arguments.eval_data:
        return None
    documents = _tokenized(arguments, tokenizer, arguments.eval_data, upsample=False)
    # A packed sample would not span the length that it is evaluated at.
    return Samples(documents, arguments.train_length, pack=False)


def text_length(arguments: LrkTrainingArguments, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of a sample that come out of documents.

    Raises:
        ValueError: if `end_prompt` leaves fewer than two.
    """
    prompt = len(prompt_ids(arguments.end_prompt, tokenizer))
    length = arguments.train_length - prompt
    if length < 2:
        raise ValueError(
            f"end_prompt has {prompt} tokens with train_length {arguments.train_length}; it must "
            "leave at least 2 for the text"
        )
    return length


def _mixed(
    arguments: LrkTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    selection: Selection | None,
) -> MixedSamples:
    """Samples of each source of `data`, in `data_shares`."""
    sources = []
    for source in arguments.data:
        documents = _tokenized(arguments, tokenizer, [source], upsample=True)
        try:
            length = text_length(arguments, tokenizer)
            sources.append(Samples(documents, length, arguments.pack, selection))
        except ValueError as error:
            raise ValueError(f"data source {source!r} makes no sample: {error}") from error
    return MixedSamples(sources, arguments.data_shares or [])


def _tokenized(
    arguments: LrkTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    sources: list[str],
    upsample: bool,
) -> Dataset:
    """Open what is prepared, or tokenize documents."""
    if not any(map(is_prepared, sources)):
        documents = load_documents(sources, arguments.text_column)
        return tokenize(
            documents,
            tokenizer,
            arguments.dataset_num_proc,
            arguments.assistant_only,
            arguments.split_special_tokens,
        )
    longer_than = arguments.upsample_longer_than if upsample else None
    # A dry run says itself whether data are whole.
    share = Share() if arguments.dry_run else local_share()
    if longer_than is None:
        return open_prepared(sources, tokenizer, share)
    return concatenate_datasets(
        [
            length_upsampled(
                open_prepared([source], tokenizer, share), longer_than, arguments.upsample_factor
            )
            for source in sources
        ]
    )


def _stream(
    arguments: LrkTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    selection: Selection | None,
) -> SampleStream:
    stream = SampleStream(
        stream_documents(arguments.data, arguments.text_column),
        tokenizer,
        text_length(arguments, tokenizer),
        arguments.pack,
        arguments.assistant_only,
        arguments.shuffle_buffer or 0,
        arguments.seed if arguments.data_seed is None else arguments.data_seed,
        selection,
        arguments.split_special_tokens,
    )
    next(stream.one_pass(count()))  # Data that make no sample show before the weights are loaded.
    return stream


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Samples | MixedSamples | SampleStream,
    arguments: LrkTrainingArguments,
    evaluation: Samples | None = None,
    base_model: str | None = None,
    original: PretrainedConfig | None = None,
) -> LrkTrainer:
    """Extend and patch a loaded model, add LoRA if asked, and make the trainer of the run.

    The model is changed in place: its RoPE, its config, its classes (`lrk.unpatch` undoes
    the last).

    Args:
        base_model: in a stage, what the whole run begins with; the model itself otherwise.
        original: in a stage, the config of that, whose RoPE is stretched.

    Raises:
        ValueError: if the output folder holds another run, tokenizer or attention and model do not
            fit, or the model cannot be extended or patched.
    """
    checkpoint = run_folder.check_together(arguments)
    check_vocabulary(tokenizer, model.config.vocab_size)
    check_attention_fits(arguments, model.config)
    # Other processes may have no weights yet, and write no checkpoint. Under ZeRO-3 each has some.
    content = {}
    with raised_by_all():
        if arguments.process_index == 0 or engine_of(arguments).name == ZERO_3:
            content = identity.content(model, samples)
            if checkpoint is not None:
                identity.check_content(Path(checkpoint), content, arguments)
    base_model = base_model or arguments.model_name_or_path
    teacher = frozen_teacher(model, arguments) if arguments.distill == ORIGINAL else None
    before = copy.deepcopy(text_config(model.config))
    extend(model, arguments.target_length, rope_plan(arguments), original)
    tokenizer.model_max_length = model.config.max_position_embeddings
    check_savable(model, tokenizer, arguments)
    # So that adapters begin the same whatever the process did before.
    set_seed(arguments.seed)
    trained = add_lora(model, arguments) if arguments.lora_rank else model
    patch(trained, **arguments.kernels, tile_tokens=arguments.tile_tokens)
    settings = identity.settings(arguments)
    trainer = LrkTrainer(trained, tokenizer, samples, arguments, evaluation)
    trainer.base_model, trainer.checkpoint = base_model, checkpoint
    trainer.teacher = teacher
    trainer.window_before = before.max_position_embeddings
    trainer.stretches = text_config(model.config).rope_parameters != before.rope_parameters
    trainer.untouched = before if trainer.stretches else None
    trainer.identity = {**settings, **content}
    return trainer


def run(trainer: LrkTrainer) -> LrkTrainer:
    """Train, evaluate, save; `trainer.model` is then the model that was saved.

    Where an engine keeps it in parts, that is so in the main process alone.

    The output folder ends up with the model and tokenizer as any program that knows transformers
    loads them, `config.yaml`, `environment.json`, `metrics.jsonl`, `loss.png`, `README.md` (a model
    card), the checkpoints, and `adapter` if LoRA was trained (the model has it merged in).

    Raises:
        ValueError: if another process writes to the folder.
        atomic.SaveError: if something cannot be written; what was saved before is intact.
        finite.NotFiniteError: for a gradient that is NaN or infinite, before it is applied, and for
            weights that are, before they are saved.
        lrk.command.Interrupted: after a SIGINT or SIGTERM, when the step is finished and its
            checkpoint written.
    """
    arguments = trainer.args
    folder = Path(arguments.output_dir or "")
    main = trainer.is_world_process_zero()
    with ExitStack() as held, trainer.signals:
        with raised_by_all():
            if main:
                held.enter_context(locked(folder))
                _begin(trainer, folder)
        trainer.train(resume_from_checkpoint=trainer.checkpoint)
        if trainer.eval_dataset is not None and not _evaluated_at_the_end(trainer):
            trainer.evaluate_at_the_end()
        if trainer.is_stopped:
            raise trainer.interrupted()
        save(trainer, folder)
        with raised_by_all():
            if main:
                metrics = folder / run_folder.METRICS_FILE
                draw_loss_curve(metrics, folder / run_folder.LOSS_CURVE_FILE)
                trainer.create_model_card()
    if arguments.push_to_hub:
        trainer.push_to_hub(commit_message="Model save", revision=arguments.hub_revision)
    return trainer


def _begin(trainer: LrkTrainer, folder: Path) -> None:
    """Make the folder that of the run; nobody else can write to it now.

    Raises:
        ValueError: if somebody has since it was checked.
    """
    arguments = trainer.args
    if run_folder.check(arguments) != trainer.checkpoint:
        raise ValueError(f"output_dir {str(folder)!r} was written to by another process meanwhile")
    run_folder.clear(arguments)
    atomic.remove_temporaries(folder)
    record = json.dumps(environment(sys.argv), indent=2) + "\n"
    atomic.write_text(folder / run_folder.ENVIRONMENT_FILE, record)
    atomic.write_text(folder / run_folder.CONFIG_FILE, arguments.to_yaml())


def save(trainer: LrkTrainer, folder: Path) -> None:
    """Write model and tokenizer in the stock format, adapters merged into the weights.

    A model that the folder holds is replaced when the new one is complete.
    """
    trainer.check_weights()
    main, engine = trainer.is_world_process_zero(), trainer.engine
    model = trainer.accelerator.unwrap_model(trainer.model)
    with raised_by_all():
        if engine.shards_weights or engine.is_deepspeed:
            model = gathered(model, trainer.dtypes, engine, main)
            trainer.was_gathered = True
        if isinstance(model, PeftModel):
            if main:
                with atomic.atomic_folder(folder / run_folder.ADAPTER_FOLDER) as whole:
                    model.save_pretrained(str(whole))
            model = merge_lora(model)
        if model is not None:
            trainer.model = model
            # Training switches the cache off, but who loads the model wants to generate with it.
            model.config.use_cache = True
            saves = trainer.args.should_save
            with atomic.files_moved_into(folder) if saves else nullcontext(folder) as whole:
                trainer.save_model(str(whole), _internal_call=True)
            model.config.use_cache = trainer.args.use_cache


def _evaluated_at_the_end(trainer: LrkTrainer) -> bool:
    return any(
        row["step"] == trainer.state.global_step and any(name.startswith("eval_") for name in row)
        for row in trainer.state.log_history
    )

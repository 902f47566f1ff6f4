"""Running stages one after the other, each whole or to be resumed.

`stages.json` says how far a run is. A stage that is finished there is not run again; one that was
killed goes on from its newest whole checkpoint, as `lrk-train` does; a merge begins again, for it
appears when it is complete.
"""

import copy
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub import snapshot_download
from transformers import PretrainedConfig

from lrk import atomic
from lrk.eval import evaluation as evaluator
from lrk.hf import patch
from lrk.lock import locked
from lrk.merge import merge
from lrk.merge.checkpoint import HEAD, Checkpoint, read_checkpoint
from lrk.merge.compatibility import check_compatible
from lrk.merge.shard import StoredTensor
from lrk.pretrained import meta_model
from lrk.recipe import Samples, SampleStream, stream_documents
from lrk.recipe.prepared import is_prepared, open_prepared
from lrk.share import local_share
from lrk.train import run_folder
from lrk.train.announcement import ending
from lrk.train.arguments import IMPACTFUL, LrkTrainingArguments
from lrk.train.arguments.positions import rope_plan
from lrk.train.checkpoints import checkpoints
from lrk.train.collective import done_by_main, raised_by_all, wait_for_all
from lrk.train.distillation import short_length
from lrk.train.dry_run import dry_run
from lrk.train.extension import extend_config
from lrk.train.model_card import merge_card
from lrk.train.preflight import check_late_parts
from lrk.train.pretrained import load_config, load_model, load_tokenizer
from lrk.train.session import (
    announce,
    check_data,
    data_groups,
    evaluation_samples,
    run,
    set_up,
    text_length,
)
from lrk.train.stage_progress import (
    FINISHED,
    STAGES_FILE,
    TABLE_FILE,
    TRAINED,
    WAITING,
    History,
    Progress,
)
from lrk.train.stages import EVALUATION, ORIGINAL, Stage, StagedRun
from lrk.train.token_loss import type_weights
from lrk.train.trainer import LrkTrainer


def dry_run_stages(staged: StagedRun) -> str:
    """Check what can be checked without weights, and describe every stage.

    Raises:
        ValueError: as `run_stages`.
    """
    check(staged)
    texts, configs = [], _configs(staged)
    for number, stage in enumerate(staged.stages, 1):
        of = f"Stage {number} of {len(staged.stages)}: {stage.name} ({stage.kind})"
        if stage.merge is None:
            made = _begun(staged, stage)
            start = None if stage.start == ORIGINAL else configs[stage.start]
            described = dry_run(made, _from_original(staged, stage), start)
            texts.append(f"{of}, from {made.model_name_or_path}\n\n{described}")
        else:
            models = ", ".join(staged.model_of(name) for name in stage.merge.models)
            texts.append(f"{of} of {models}\n\n  {stage.merge.rule}")
        texts.append("")
    return "\n".join(texts)


def _configs(staged: StagedRun) -> dict[str, PretrainedConfig]:
    """What the config of each stage's model will be; no stage need have been run yet."""
    configs: dict[str, PretrainedConfig] = {}
    for stage in staged.stages:
        arguments = _from_original(staged, stage)
        original = load_config(arguments)
        configs.setdefault(ORIGINAL, original)
        # A merge has the config of the last of its models.
        start = stage.start if stage.merge is None else stage.merge.models[-1]
        configs[stage.name] = config = copy.deepcopy(configs[start])
        if stage.merge is None:
            length, plan = arguments.target_length, rope_plan(arguments)
            extend_config(config, length, plan, original)
    return configs


def check(staged: StagedRun) -> Progress:
    """Find what is wrong with any stage before the first begins. Loads no weights.

    Raises:
        ValueError: in one sentence.
    """
    progress = _check_folder(staged)
    for stage in staged.stages:
        if progress.state(stage) != WAITING:
            continue
        try:
            if stage.merge is None:
                if not staged.overwrite:
                    run_folder.check(_training_arguments(staged, stage))
                _check_training(_from_original(staged, stage))
            elif ORIGINAL in stage.merge.models:
                _check_merge(staged, stage)
            _check_evaluation(staged, stage)
        except ValueError as error:
            raise ValueError(f"stage {stage.name!r}: {error}") from error
    _check_teachers(staged)
    return progress


def _check_teachers(staged: StagedRun) -> None:
    """That each reads short contexts in the window that the stages before it leave."""
    configs = _configs(staged)
    for stage in staged.stages:
        if stage.merge is None:
            window = configs[stage.start].max_position_embeddings
            try:
                short_length(_from_original(staged, stage), window)
            except ValueError as error:
                raise ValueError(f"stage {stage.name!r}: {error}") from error


def run_stages(staged: StagedRun) -> str:
    """Run the stages that are not finished.

    The folder of each is as `lrk.train.run` leaves it. `stages.json` holds settings and losses of
    each stage, `stages.md` the losses as a table, `config.yaml` what the whole run was told.

    Returns:
        The table, where the last model is, and what to type next.

    Raises:
        ValueError: for bad input, and if another process runs the same stages.
        atomic.SaveError: if something cannot be written; finished stages are intact.
        finite.NotFiniteError: as in one run.
    """
    check(staged)
    with ExitStack() as held:
        with raised_by_all():
            if PartialState().is_main_process:
                held.enter_context(locked(staged.output_dir))
        return _run_stages(staged)


def _run_stages(staged: StagedRun) -> str:
    # Again, since another process may have had the folder until now.
    progress = _check_folder(staged)
    _once(lambda: _begin(staged, progress))
    for stage in staged.stages:
        if progress.state(stage) == WAITING:
            history = _train(staged, stage) if stage.merge is None else _merge(staged, stage)
            progress.note(stage, TRAINED, history)
            _release_memory()
        if progress.state(stage) == TRAINED:
            _evaluate(stage)
            progress.note(stage, FINISHED)
            _release_memory()
    table = progress.table()
    _once(lambda: atomic.write_text(staged.output_dir / TABLE_FILE, table))
    return "\n".join([table, *_ending(staged)]) + "\n"


def _ending(staged: StagedRun) -> Iterator[str]:
    """Where the last model is, and what to type next."""
    last = staged.stages[-1]
    arguments = _from_original(staged, last)
    window = load_config(arguments).max_position_embeddings
    return ending(arguments, [], staged.model, window)


def _train(staged: StagedRun, stage: Stage) -> History:
    try:
        with raised_by_all():
            goes_on = stage.start != ORIGINAL
            original = load_config(_from_original(staged, stage)) if goes_on else None
        trainer = set_up(_training_arguments(staged, stage), staged.model, original)
    except ValueError as error:
        raise ValueError(f"stage {stage.name!r}: {error}") from error
    announce(trainer)
    return run(trainer).state.log_history


def _from_original(staged: StagedRun, stage: Stage) -> LrkTrainingArguments:
    """Those of the stage if the run began with it: all that is known before earlier ones end."""
    return stage.arguments(staged.model, staged.gguf_file)


def _training_arguments(staged: StagedRun, stage: Stage) -> LrkTrainingArguments:
    """Those that go on from what a stage has left, or begin it."""
    begun = _begun(staged, stage)
    # Of models alone nothing goes on.
    if begun.save_only_model or not checkpoints(stage.folder):
        return begun
    return _begun(staged, stage, resume_from_checkpoint="true", overwrite_output_dir=False)


def _begun(staged: StagedRun, stage: Stage, **changes: Any) -> LrkTrainingArguments:
    """Those that begin it. What the stage before has left was evaluated at its end."""
    first: dict[str, Any] = {"overwrite_output_dir": True}
    if stage.start != ORIGINAL and "eval_on_start" not in stage.values:
        first["eval_on_start"] = False
    return stage.arguments(*staged.start_of(stage), **first | changes)


def _merge(staged: StagedRun, stage: Stage) -> History:
    """Merge, evaluate and describe; the model is whole where it exists."""
    assert stage.merge is not None
    names = stage.merge.models
    models = [_local(staged.model_of(name)) for name in names]
    arguments = stage.arguments(str(stage.folder), None)
    rule = stage.merge.rule
    if not (stage.folder / "config.json").is_file():
        try:
            _once(lambda: merge(models, stage.folder, rule, config_from=models[-1]))
        except ValueError as error:
            raise ValueError(f"stage {stage.name!r}: {error}") from error
    config = load_config(arguments)
    tokenizer = load_tokenizer(arguments, config)
    samples = evaluation_samples(arguments, tokenizer)
    history: History = []
    if samples is not None:
        (stage.folder / run_folder.METRICS_FILE).unlink(missing_ok=True)
        model = patch(load_model(arguments), **arguments.kernels)
        trainer = LrkTrainer(model, tokenizer, samples, arguments, samples)
        trainer.evaluate()
        history = trainer.state.log_history
    merged = [name if name == ORIGINAL else Path(staged.model_of(name)).name for name in names]
    card = merge_card(arguments, config, history, staged.model, merged, stage.merge.rule)
    _once(lambda: atomic.write_text(stage.folder / run_folder.MODEL_CARD_FILE, card))
    return history


def _evaluate(stage: Stage) -> None:
    """Run `lrk-eval`, cell by cell; what is there already is not run again."""
    arguments = stage.evaluation_arguments()
    if arguments is None:
        return
    try:
        evaluation = evaluator.set_up(arguments)
        model = evaluator.load(evaluation)
    except ValueError as error:
        raise ValueError(f"stage {stage.name!r}: {error}") from error
    evaluator.run(evaluation, model)


def _check_folder(staged: StagedRun) -> Progress:
    """What the folder knows of this run.

    Raises:
        ValueError: if it holds another one, or none to resume.
    """
    progress, folder = Progress(staged), staged.output_dir
    known = (folder / STAGES_FILE).is_file()
    if staged.overwrite:
        return progress
    if staged.resume == "true" and not known:
        raise ValueError(f"output_dir {str(folder)!r} holds no run with stages to resume")
    if staged.resume == "false" or not known:
        held = [path.name for path in run_folder.work(folder)]
        if known:
            held = [STAGES_FILE] if _has_begun(folder) else []
        if held:
            raise ValueError(
                f"output_dir {str(folder)!r} holds another run ({held[0]}): choose another folder, "
                "resume_from_checkpoint true, or overwrite_output_dir"
            )
        return progress
    progress.read()
    return progress


def _has_begun(folder: Path) -> bool:
    """Whether a stage came to its first step."""
    stages = json.loads((folder / STAGES_FILE).read_text(encoding="utf-8"))
    return any(
        entry["state"] != WAITING or run_folder.work(folder / name)
        for name, entry in stages.items()
    )


def _begin(staged: StagedRun, progress: Progress) -> None:
    if staged.output_dir.is_dir():
        _clear(staged)
    staged.output_dir.mkdir(parents=True, exist_ok=True)
    # First the record: a folder that has anything else without it holds another run.
    progress.write()
    atomic.write_text(staged.output_dir / run_folder.CONFIG_FILE, staged.yaml)


def _clear(staged: StagedRun) -> None:
    """Delete what an earlier run left, if `overwrite_output_dir`, and half-written files."""
    atomic.remove_temporaries(staged.output_dir)
    if not staged.overwrite:
        return
    record = staged.output_dir / STAGES_FILE
    names = {stage.folder.name for stage in staged.stages}
    if record.is_file():
        names |= json.loads(record.read_text(encoding="utf-8")).keys()
    # The record goes last: what is left of a deletion that is interrupted can be deleted again.
    for path in run_folder.contents(staged.output_dir):
        atomic.remove(path)
    for name in [*sorted(names), TABLE_FILE, STAGES_FILE]:
        if (staged.output_dir / name).exists():
            atomic.remove(staged.output_dir / name)


def _check_training(arguments: LrkTrainingArguments) -> None:
    """Model, tokenizer, tables, and that each source makes a sample.

    Prepared folders are opened, which checks their hashes. Of others as many documents are read as
    make one sample.
    """
    config = load_config(arguments)
    check_late_parts(arguments, config)
    tokenizer = load_tokenizer(arguments, config)
    chosen = check_data(arguments, tokenizer)
    if arguments.token_loss == IMPACTFUL:
        type_weights(arguments, tokenizer)
    for sources in data_groups(arguments):
        evaluates = sources is arguments.eval_data
        length = arguments.train_length if evaluates else text_length(arguments, tokenizer)
        pack, selection = (False, None) if evaluates else (arguments.pack, chosen)
        if any(map(is_prepared, sources)):
            Samples(open_prepared(sources, tokenizer, local_share()), length, pack, selection)
            continue
        documents = stream_documents(sources, arguments.text_column)
        stream = SampleStream(
            documents,
            tokenizer,
            length,
            pack,
            arguments.assistant_only,
            selection=selection,
            split_special_tokens=arguments.split_special_tokens,
        )
        next(stream.one_pass(count()))


def _check_merge(staged: StagedRun, stage: Stage) -> None:
    """That the original fits what a stage will save: names and shapes, config and vocabulary.

    What loading and saving make of the original is read off a model without weights.
    """
    arguments = stage.arguments(staged.model, None)
    config = load_config(arguments)
    original = read_checkpoint(_local(staged.model))
    model = meta_model(config)
    # Tied parameters have one name; a stored head that differs from the embeddings is not tied.
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters()}
    if HEAD in original.tensors:
        shapes.setdefault(HEAD, original.tensors[HEAD].shape)
    saved = Checkpoint(
        stage.folder,
        original.config,
        {name: StoredTensor(Path(), torch.float32, shape, 0) for name, shape in shapes.items()},
        load_tokenizer(arguments, config).get_vocab() if original.vocabulary else None,
    )
    check_compatible([original, saved], chooses_config=True)


def _check_evaluation(staged: StagedRun, stage: Stage) -> None:
    """That `lrk-eval` can run on what the stage will save, as far as that is known."""
    arguments = stage.evaluation_arguments()
    if arguments is None:
        return
    trained = stage.arguments(staged.model, staged.gguf_file)
    config = load_config(trained)
    window = max(config.max_position_embeddings, trained.target_length)
    with TemporaryDirectory() as folder:
        load_tokenizer(trained, config).save_pretrained(folder)
        config.max_position_embeddings = window
        config.save_pretrained(folder)
        results = str(Path(folder) / EVALUATION)
        evaluator.set_up(replace(arguments, model=folder, output_dir=results))


def _local(model: str) -> Path:
    """The folder of a model; one of the hub is downloaded."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"model_name_or_path {model!r} cannot be loaded: {reason}") from error


def _once(action: Callable[[], object]) -> None:
    """Do it in the first process of several, while the others wait."""
    wait_for_all()
    done_by_main(action)


def _release_memory() -> None:
    """A stage leaves nothing behind, so that its memory and its record of it are the next one's."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

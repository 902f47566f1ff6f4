"""An evaluation from its first check to the last cell."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lrk.device_map import input_device
from lrk.env import environment
from lrk.eval import report, texts
from lrk.eval.arguments import LOSS_TASKS, EvalArguments
from lrk.eval.cells import LM_EVAL, Cell, ResultFolder, cells_of
from lrk.eval.cost import cost
from lrk.eval.decoding import decoding_block
from lrk.eval.fitting import Trials
from lrk.eval.generation import answers
from lrk.eval.longppl import find_key_tokens
from lrk.eval.losses import Mean, check_head, loss_by_position, mean_loss, token_losses
from lrk.eval.materials import Materials, load_materials
from lrk.eval.niah import GridNeedle
from lrk.eval.pretrained import (
    fingerprint_config,
    fingerprint_tokenizer,
    is_patched,
    load_config,
    load_key_model,
    load_model,
    load_tokenizer,
)
from lrk.eval.prompt import Encoder
from lrk.eval.short_context import run_lm_eval
from lrk.eval.tasks import GRID, TASKS, Setting
from lrk.hf import patch
from lrk.output_folder import check_output_dir
from lrk.peak_memory import peak_memory_gib
from lrk.pretrained import fingerprint_weights, meta_model
from lrk.progress import progress, tracked
from lrk.share import at_work

# Settings that must be the same in a whole folder; the weights are known when they are loaded.
COMMON = (
    "model_config",
    "weights",
    "tokenizer",
    "dtype",
    "patched",
    "decoding",
    "seed",
    "chat_template",
)

Advance = Callable[[int], None]
Result = dict[str, Any]


@dataclass
class Evaluation:
    """All that an evaluation needs but the weights.

    Attributes:
        arguments: as given.
        config: of the model.
        encoder: prompts to ids.
        materials: what tasks are made of.
        texts: what losses are computed on; empty if none is.
        cells: all that are asked for, by all jobs.
        folder: of the results.
        weights: fingerprint; None until they are loaded.
        key_tokens: what `key_model` found, by length.
        sizes: of haystacks, by task and length.
    """

    arguments: EvalArguments
    config: PretrainedConfig
    encoder: Encoder
    materials: Materials
    texts: list[Tensor]
    cells: list[Cell]
    folder: ResultFolder
    weights: str | None = None
    key_tokens: dict[int, list[Tensor]] = field(default_factory=dict)
    sizes: dict[tuple[str, int], int] = field(default_factory=dict)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.encoder.tokenizer

    @cached_property
    def vocabulary(self) -> str:
        """Fingerprint of the tokenizer, which takes a sixth of a second: not anew for each cell."""
        return fingerprint_tokenizer(self.tokenizer)

    def trials(self, cell: Cell) -> Trials:
        """The trials of a cell whose task is answered by generating text."""
        assert cell.length is not None
        task, seed = TASKS[cell.task], self.arguments.seed
        depth = None if cell.depth is None else cell.depth / 100
        setting = Setting(self.encoder, cell.length, seed, self.materials, depth)
        return Trials(
            cell.task, task.draw(setting), self.encoder, cell.length, self.answer_tokens(cell), seed
        )

    def answer_tokens(self, cell: Cell) -> int:
        """How long an answer may be."""
        return self.arguments.max_new_tokens or TASKS[cell.task].max_new_tokens

    def size(self, cell: Cell) -> int:
        """Units of haystack in the trials of a cell; in the grid the same at all depths."""
        assert cell.length is not None
        key = (cell.task, cell.length)
        if key not in self.sizes:
            self.sizes[key] = self.trials(cell).size()
        return self.sizes[key]

    @cached_property
    def own_cells(self) -> list[Cell]:
        """The cells of this process: all, or those that its share of them gets, the dearest first.

        They follow from the arguments, not from what others have finished.
        """
        share = self.arguments.share
        if share.count == 1:
            return self.cells
        width = self.config.get_text_config().hidden_size
        costs = [cost(cell, self.count(cell), self.arguments, width) for cell in self.cells]
        return [self.cells[number] for number in share.of_costs(costs)]

    def missing(self) -> list[Cell]:
        """Cells that this process is to run."""
        if self.arguments.overwrite_output_dir:
            return self.own_cells
        return self.unfinished(self.own_cells)

    def unfinished(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those of which the folder has no result."""
        return [cell for cell in cells if self.folder.read(cell) is None]

    def count(self, cell: Cell) -> int:
        """Trials, texts, or tasks of lm-eval in a cell."""
        if cell.task in TASKS:
            of_grid = self.arguments.grid_trials if cell.task == GRID else None
            return of_grid or self.arguments.trials or TASKS[cell.task].trials
        return 1 if cell.task == LM_EVAL else len(self.texts)

    def settings(self, cell: Cell) -> dict[str, Any]:
        """All that the figures of a cell depend on, but for versions and the machine."""
        arguments = self.arguments
        found: dict[str, Any] = {
            "model_config": fingerprint_config(self.config),
            "tokenizer": self.vocabulary,
            "dtype": arguments.dtype,
            "patched": is_patched(arguments, self.config),
            "decoding": arguments.decoding,
            "seed": arguments.seed,
            "chat_template": arguments.chat_template,
        }
        if self.weights is not None:
            found["weights"] = self.weights
        names: Sequence[str] = ()
        if cell.task in TASKS:
            task = TASKS[cell.task]
            found["trials"] = self.count(cell)
            found["max_new_tokens"] = arguments.max_new_tokens
            found |= self.materials.fingerprints(task.needs + task.optional)
        elif cell.task in LOSS_TASKS:
            found["texts"] = texts.fingerprint(self._read(cell))
            names = {
                "perplexity": ("stride",),
                "loss_by_position": ("position_bins",),
                "longppl": ("short_context", "short_stride", "key_model"),
            }[cell.task]
        return found | {name: getattr(arguments, name) for name in names}

    def run(self, cell: Cell, model: PreTrainedModel, advance: Advance) -> Result:
        """Evaluate one cell; `advance` is told how many of its `count` are done."""
        if cell.task in TASKS:
            return self._generate(cell, model, advance)
        if cell.task == LM_EVAL:
            arguments = self.arguments
            found = run_lm_eval(
                model,
                self.tokenizer,
                str(cell.lm_eval_task),
                arguments.batch_size,
                arguments.seed,
                arguments.chat_template,
                arguments.lm_eval_folder,
            )
            advance(1)
            return found
        run = {
            "perplexity": self._perplexity,
            "loss_by_position": self._loss_by_position,
            "longppl": self._longppl,
        }[cell.task]
        return run(cell, model, advance)

    def find_keys(self) -> None:
        """Let `key_model`, if there is one, find the key tokens that are still needed."""
        cells = [cell for cell in self.missing() if cell.task == "longppl"]
        if self.arguments.key_model is None or not cells:
            return
        judge = load_key_model(self.arguments, self.vocabulary)
        check_head(judge, self.texts[0])
        for cell in cells:
            assert cell.length is not None
            texts = self._read(cell)
            self.key_tokens[cell.length] = [
                find_key_tokens(
                    judge,
                    text,
                    None,
                    self.arguments.short_context,
                    self.arguments.short_stride,
                )
                for text in tracked(texts, f"key tokens at {cell.length:,}", len(texts))
            ]

    def _read(self, cell: Cell) -> list[Tensor]:
        """What a cell reads of each text: perplexity all of it, in windows of the cell's length."""
        if cell.task == "perplexity":
            return self.texts
        return [text[: cell.length] for text in self.texts]

    def _generate(self, cell: Cell, model: PreTrainedModel, advance: Advance) -> Result:
        task, trials = TASKS[cell.task], self.trials(cell)
        size, total = self.size(cell), self.count(cell)
        rows: list[Result] = []
        while len(rows) < total:
            indices = range(len(rows), min(len(rows) + self.arguments.batch_size, total))
            drawn = [trials(index, size) for index in indices]
            prompts = [ids for _, ids in drawn]
            said = answers(model, self.tokenizer, prompts, self.answer_tokens(cell))
            for index, (prompt, ids), answer in zip(indices, drawn, said, strict=True):
                rows.append(
                    {
                        "trial": index,
                        "tokens": len(ids),
                        "depth": prompt.depth,
                        "references": prompt.references,
                        "answer": answer,
                        "score": task.score(answer, prompt.references),
                    }
                )
            advance(len(drawn))
        score = 100 * sum(row["score"] for row in rows) / total
        return {"score": score, "haystack_size": size, "trials": rows}

    def _perplexity(self, cell: Cell, model: PreTrainedModel, advance: Advance) -> Result:
        losses = []
        for text in self._read(cell):
            losses.append(token_losses(model, text, cell.length, self.arguments.stride))
            advance(1)
        return _described(mean_loss(losses)) | {
            "documents": [_described(mean_loss([loss])) for loss in losses]
        }

    def _loss_by_position(self, cell: Cell, model: PreTrainedModel, advance: Advance) -> Result:
        losses = []
        for text in self._read(cell):
            losses.append(token_losses(model, text))
            advance(1)
        bins = loss_by_position(losses, self.arguments.position_bins)
        return _described(mean_loss(losses)) | {
            "bins": [
                {"start": start, "stop": stop} | _described(mean) for start, stop, mean in bins
            ]
        }

    def _longppl(self, cell: Cell, model: PreTrainedModel, advance: Advance) -> Result:
        assert cell.length is not None
        arguments, losses, keys = self.arguments, [], []
        for number, text in enumerate(self._read(cell)):
            losses.append(token_losses(model, text))
            if arguments.key_model is None:
                short = (arguments.short_context, arguments.short_stride)
                keys.append(find_key_tokens(model, text, losses[-1], *short))
            else:
                keys.append(self.key_tokens[cell.length][number])
            advance(1)
        return {"key": _described(mean_loss(losses, keys)), "all": _described(mean_loss(losses))}


def set_up(arguments: EvalArguments) -> Evaluation:
    """Load everything but weights, and check it. Small things come first: errors show early.

    Raises:
        ValueError: in one sentence, for anything that the arguments get wrong.
    """
    check_output_dir(str(arguments.output_dir))
    folder = ResultFolder(Path(str(arguments.output_dir)))
    needle = None
    if arguments.needle is not None:
        needle = GridNeedle(arguments.needle, str(arguments.question), str(arguments.answer))
    materials = load_materials(
        arguments.haystack, arguments.words, arguments.squad, arguments.hotpotqa, needle
    )
    for task in arguments.tasks:
        if task in TASKS:
            materials.require(task, TASKS[task].needs)
    config = load_config(arguments)
    _check_positions(arguments, config)
    _check_decoding(arguments, config)
    encoder = Encoder(load_tokenizer(arguments, config), arguments.chat_template)
    loaded = _texts(arguments, encoder.tokenizer)
    cells = cells_of(arguments)
    evaluation = Evaluation(arguments, config, encoder, materials, loaded, cells, folder)
    _check_folder(evaluation)
    for cell in evaluation.missing():
        if cell.task in TASKS:
            evaluation.size(cell)
    # Also of other jobs, so that those of one command refuse together what one cannot do.
    for cell in evaluation.unfinished(cells):
        if cell.task in TASKS and (cell.task, cell.length) not in evaluation.sizes:
            evaluation.trials(cell).check()
    return evaluation


def load(evaluation: Evaluation) -> PreTrainedModel:
    """Load the weights. A `key_model` comes and goes before, so that one model is held at a time.

    Raises:
        ValueError: if they cannot be loaded, do not fit, or the folder holds results of others.
    """
    with at_work(evaluation.folder.path, evaluation.arguments.share):
        pass  # Another process shows before the weights are loaded.
    evaluation.find_keys()
    model = load_model(evaluation.arguments)
    evaluation.weights = fingerprint_weights(model)
    _check_folder(evaluation)
    if evaluation.texts:
        check_head(model, evaluation.texts[0])
    return model


def run(evaluation: Evaluation, model: PreTrainedModel) -> dict[str, Any] | None:
    """Run this process's cells that are not finished and save each; save the results of all.

    Of several jobs the one that finishes last saves them. (Two that finish at a time both do; they
    save the same.) None waits for another.

    Returns:
        What `results.json` holds; None if cells of other jobs are missing.

    Raises:
        ValueError: if another process runs the same cells into the folder, or another job has
            meanwhile put results of other settings there.
        SaveError: if something cannot be written.
    """
    arguments, folder = evaluation.arguments, evaluation.folder
    with at_work(folder.path, arguments.share):
        is_alone = arguments.share.count == 1
        folder.prepare(None if is_alone else evaluation.own_cells, arguments.overwrite_output_dir)
        record = environment()
        _run(evaluation, model, record)
        if evaluation.unfinished(evaluation.cells):
            return None
        settings = {cell: evaluation.settings(cell) for cell in evaluation.cells}
        folder.check(settings, COMMON)
        return report.write(folder, arguments, record)


def _run(evaluation: Evaluation, model: PreTrainedModel, record: Mapping[str, Any]) -> None:
    arguments, folder = evaluation.arguments, evaluation.folder
    missing = evaluation.missing()
    count, share = sum(map(evaluation.count, missing)), arguments.share
    title = "lrk-eval" if share.count == 1 else f"lrk-eval {share}"
    with (
        decoding_block(arguments.decoding, model),
        progress(f"{title}, trials", count) as advance,
    ):
        for cell in missing:
            advance(0, note=str(cell))
            begin = time.perf_counter()
            result = evaluation.run(cell, model, advance)
            described = {
                "title": str(cell),
                "task": cell.task,
                "length": cell.length,
                "depth": cell.depth,
                "lm_eval_task": cell.lm_eval_task,
                "settings": evaluation.settings(cell),
                "seconds": time.perf_counter() - begin,
                "peak_memory_gib": peak_memory_gib(input_device(model)),
                "environment": record,
            }
            folder.write(cell, described | {"result": result})


def _texts(arguments: EvalArguments, tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    if not set(arguments.tasks) & set(LOSS_TASKS):
        return []
    assert arguments.document_length is not None
    return texts.load_texts(
        arguments.data,
        arguments.text_column,
        tokenizer,
        arguments.documents,
        arguments.document_length,
    )


def _check_positions(arguments: EvalArguments, config: PretrainedConfig) -> None:
    """Learnt positions end where their table ends; RoPE goes on, well or badly."""
    limit = getattr(config, "max_position_embeddings", None)
    has_rope = getattr(config, "rope_parameters", None) is not None
    longest = max(arguments.lengths, default=0)
    if limit is not None and not has_rope and longest > limit:
        raise ValueError(
            f"lengths has {longest}, but model {arguments.model!r} has learnt {limit} positions"
        )


def _check_decoding(arguments: EvalArguments, config: PretrainedConfig) -> None:
    """Begin to decode a model without weights, which is refused as one with weights would be."""
    if arguments.decoding is None:
        return
    model = meta_model(config)
    try:
        with decoding_block(arguments.decoding, patch(model)):
            pass
    except ValueError as error:
        raise ValueError(f"decoding is {arguments.decoding!r}: {error}") from error


def _check_folder(evaluation: Evaluation) -> None:
    if not evaluation.arguments.overwrite_output_dir:
        settings = {cell: evaluation.settings(cell) for cell in evaluation.cells}
        evaluation.folder.check(settings, COMMON)


def _described(mean: Mean) -> Result:
    return {"loss": mean.loss, "perplexity": mean.perplexity, "tokens": mean.tokens}

"""Stages: one configuration that extends a model, trains it on replayed data, and merges it.

    stages:
      - kind: extension
        data: long.jsonl
      - kind: annealing
        data: [instructions.jsonl, code.jsonl]
        data_shares: [0.7, 0.3]
      - kind: merge

A stage may hold every key of `lrk-train`. It beats what stands above `stages`, which beats the
default of the kind; the command line beats them all. Each stage starts from the model of the one
before it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lrk.eval import parser as eval_parser
from lrk.eval.arguments import EvalArguments
from lrk.merge import Linear, Slerp, TaskArithmetic
from lrk.merge.rules import Rule
from lrk.train.arguments import LrkTrainingArguments, without_secrets
from lrk.train.arguments.lora import LoraArguments
from lrk.train.engine import engine_of
from lrk.train.nearest import did_you_mean
from lrk.train.parser import STAGES, read_configuration, underscored, values

ORIGINAL = "original"
EVALUATION = "evaluation"

# LongRecipe (2409.00509, 4.1). Its annealing has a decayed learning rate; that it decays linearly,
# and that replayed samples keep ordinary positions, is ours.
DEFAULTS: dict[str, dict[str, str]] = {
    "extension": {
        "learning_rate": "5e-5",
        "lr_scheduler_type": "constant",
        "weight_decay": "0.1",
    },
    "annealing": {
        "learning_rate": "5e-6",
        "lr_scheduler_type": "linear",
        "weight_decay": "0.1",
        "position_method": "contiguous",
    },
    "merge": {},
}
RULES = ("linear", "slerp", "task_arithmetic")

_OF_STAGE = ("name", "kind", EVALUATION)
_OF_MERGE = ("models", "rule", "weights", "t")
_OF_ADAPTERS = tuple(LoraArguments.__annotations__)
_OF_MERGED_MODEL = ("eval_data", "eval_lengths", "eval_position_method")
_ACTIONS = ("resume_from_checkpoint", "overwrite_output_dir", "dry_run")
_PREDICTIONS = ("gpu", "dollars_per_hour")
_OF_RUN = ("output_dir", "model_name_or_path", "gguf_file", *_ACTIONS, STAGES)
_NOT_OF_EVALUATION = ("model", "output_dir", "dry_run", "overwrite_output_dir", "shard")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

Mapped = dict[str, Any]


@dataclass(frozen=True)
class Merge:
    """What a merge stage merges, by which rule.

    Attributes:
        models: names of stages before it, or `original`, in the order of the rule.
    """

    models: tuple[str, ...]
    rule: Rule


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: unique.
        kind: a key of `DEFAULTS`.
        folder: of its model and records.
        start: the stage whose model it starts from, or `original`.
        values: arguments of `lrk-train`, less folder and model; of a merge, those that its
            evaluation needs.
        merge: of a merge.
        evaluation: arguments of `lrk-eval`, as text; empty if it does not run.
        settings: everything that its result depends on, as JSON takes it.
    """

    name: str
    kind: str
    folder: Path
    start: str
    values: Mapped
    merge: Merge | None
    evaluation: Mapped
    settings: Mapped

    def arguments(self, model: str, gguf_file: str | None, **changes: Any) -> LrkTrainingArguments:
        """Those of its training (of a merge: of its evaluation), from `model` to its folder."""
        place = {"model_name_or_path": model, "output_dir": str(self.folder)}
        return LrkTrainingArguments(**self.values | place | {"gguf_file": gguf_file} | changes)

    def evaluation_arguments(self) -> EvalArguments | None:
        """Those of its `lrk-eval`."""
        if not self.evaluation:
            return None
        words = eval_parser.words_of(self.evaluation, EVALUATION)
        folder = self.folder / EVALUATION
        return eval_parser.parse([*words, f"--model={self.folder}", f"--output_dir={folder}"])


@dataclass(frozen=True)
class StagedRun:
    """All stages, and how the run was started.

    Attributes:
        model: folder or hub name of the original model.
        gguf_file: of it.
        resume: `true`, `auto` or `false`.
        yaml: the configuration, which reads back to the same run.
    """

    output_dir: Path
    model: str
    gguf_file: str | None
    stages: tuple[Stage, ...]
    resume: str
    overwrite: bool
    dry_run: bool
    yaml: str

    def model_of(self, name: str) -> str:
        """Where the model of a stage, or the original one, is."""
        return next((str(each.folder) for each in self.stages if each.name == name), self.model)

    def start_of(self, stage: Stage) -> tuple[str, str | None]:
        """The model that a stage starts from, and the GGUF file in it."""
        return self.model_of(stage.start), self.gguf_file if stage.start == ORIGINAL else None


def parse_stages(argv: Sequence[str]) -> StagedRun | None:
    """The stages that `[CONFIG.yaml | PRESET] [--KEY VALUE ...]` describes; None if it has none.

    `--KEY` is for every stage, `--stages.NAME.KEY` for one.

    Raises:
        ValueError: in one sentence, which names the stage where it is about one.
    """
    content, path, options = read_configuration(argv)
    if STAGES not in content:
        return None
    if {"-h", "--help"} & set(options):
        values([], ["--help"])
    document = _with_options(content, options, path)
    above = {key: value for key, value in document.items() if key not in (STAGES, EVALUATION)}
    run = values([(above, path)], [])
    for name in ("output_dir", "model_name_or_path"):
        if not run.get(name):
            raise ValueError(f"{name} is missing; with {STAGES} it must stand above them")
    resume = str(run.get("resume_from_checkpoint") or "false").lower()
    if resume not in ("true", "auto", "false"):
        raise ValueError(
            f"resume_from_checkpoint is {resume!r}; with {STAGES} it must be true, auto or false"
        )
    evaluation, folder = document.get(EVALUATION) or {}, Path(run["output_dir"])
    staged = StagedRun(
        output_dir=folder,
        model=run["model_name_or_path"],
        gguf_file=run.get("gguf_file"),
        stages=tuple(_Reader(above, path, evaluation, folder).stages(document[STAGES])),
        resume=resume,
        overwrite=bool(run.get("overwrite_output_dir")),
        dry_run=bool(run.get("dry_run")),
        yaml=_dumped(document),
    )
    if resume != "false" and staged.overwrite:
        raise ValueError("resume_from_checkpoint and overwrite_output_dir exclude each other")
    _check(staged)
    return staged


def _with_options(content: Mapped, options: Sequence[str], path: str) -> Mapped:
    """The file as it would be if it held what the command line says."""
    document, listed = _flat(content), content[STAGES]
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise ValueError(f"{STAGES} in {path} must be a list of mappings")
    stages = [_flat(each) for each in listed]
    of_name = {str(each.get("name") or each.get("kind")).replace("-", "_"): each for each in stages}
    of_one: list[tuple[str, str, Any]] = []
    for key, value in _mapping_of(options).items():
        head, _, rest = key.partition(".")
        if head == STAGES:
            name, _, own = rest.partition(".")
            if name not in of_name:
                near = did_you_mean(name, of_name)
                raise ValueError(f"there is no stage {name!r} for the key '--{key}'{near}")
            of_one.append((name, own, value))
            continue
        document[key] = value
        for stage in stages:
            if key in stage:
                stage[key] = value
    for name, own, value in of_one:
        of_name[name][own] = value
    return document | {STAGES: stages}


def _flat(content: Mapped) -> Mapped:
    """With `_` for `-`, and `kernels: {rope: false}` as `kernels.rope: false`."""
    flat: Mapped = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name == "kernels" and isinstance(value, dict):
            flat |= {f"{name}.{kernel}": choice for kernel, choice in value.items()}
        else:
            flat[name] = value
    return flat


def _mapping_of(options: Sequence[str]) -> Mapped:
    """Words of a command line as a file would have them: `--tf32` is `true`, `--no_pack` false."""
    found: dict[str, list[str]] = {}
    key = None
    for word in map(underscored, options):
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            found[key] = [value] if equals else []
        elif key is None:
            raise ValueError(f"{word!r} is neither a key nor the value of one")
        else:
            found[key].append(word)
    mapping: Mapped = {}
    for key, words in found.items():
        head, dot, name = key.rpartition(".")
        if words:
            mapping[key] = words if len(words) > 1 else words[0]
        elif name.startswith("no_"):
            mapping[head + dot + name.removeprefix("no_")] = "false"
        else:
            mapping[key] = "true"
    return mapping


@dataclass(frozen=True)
class _Reader:
    """Makes stages of their mappings; holds what they have in common."""

    above: Mapped
    path: str
    evaluation: Mapped
    output_dir: Path

    def stages(self, listed: Sequence[Mapped]) -> list[Stage]:
        found: list[Stage] = []
        for number, content in enumerate(listed, 1):
            kind = str(content.get("kind"))
            if kind not in DEFAULTS:
                raise ValueError(
                    f"stage {number} has kind {kind!r}; it must be one of {', '.join(DEFAULTS)}"
                    f"{did_you_mean(kind, DEFAULTS)}"
                )
            name = str(content.get("name") or kind)
            if not _NAME.fullmatch(name) or name in [ORIGINAL, *(stage.name for stage in found)]:
                raise ValueError(
                    f"stage {number} has the name {name!r}; a name must be letters, digits, '_' "
                    f"and '-', not {ORIGINAL!r}, and no other stage's (the default is the kind)"
                )
            found.append(self._stage(number, name, kind, content, found))
        if not found:
            raise ValueError(f"{STAGES} in {self.path} is empty")
        return found

    def _stage(
        self, number: int, name: str, kind: str, content: Mapped, before: list[Stage]
    ) -> Stage:
        where = f"stage {name!r} of {self.path}"
        own = {key: value for key, value in content.items() if key not in _OF_STAGE}
        for key in own:
            if key in _OF_RUN:
                raise ValueError(f"{key} stands in {where}; it belongs above {STAGES}")
        merge = None
        if kind == "merge":
            merge, given = self._merge(own, where, before)
        else:
            given = self._values([(DEFAULTS[kind], kind), (self.above, self.path), (own, where)])
        evaluation = content.get(EVALUATION, self.evaluation) or {}
        if not isinstance(evaluation, dict):
            raise ValueError(f"{EVALUATION} in {where} must be a mapping of keys of lrk-eval")
        for key in evaluation:
            if key in _NOT_OF_EVALUATION:
                raise ValueError(
                    f"{key} stands in {EVALUATION} of {where}; stages set it themselves"
                )
        start = before[-1].name if before else ORIGINAL
        settings = {"kind": kind, "start": start, **without_secrets(given), EVALUATION: evaluation}
        if merge is not None:
            settings["merge"] = repr(merge)
        folder = self.output_dir / f"{number:02}-{name}"
        return Stage(name, kind, folder, start, given, merge, evaluation, settings)

    def _values(self, mappings: list[tuple[Mapping[str, Any], str]]) -> Mapped:
        try:
            found = values(mappings, [])
        except ValueError as error:
            where = mappings[-1][1]
            raise ValueError(str(error) if where in str(error) else f"{where}: {error}") from error
        return {name: value for name, value in found.items() if name not in _OF_RUN}

    def _merge(self, own: Mapped, where: str, before: list[Stage]) -> tuple[Merge, Mapped]:
        """The merge, and the arguments of its evaluation: those of the stage before it."""
        if not before:
            raise ValueError(f"{where} is a merge without a stage before it, so nothing is merged")
        for key in own:
            if key not in _OF_MERGE + _OF_MERGED_MODEL:
                known = [*_OF_STAGE, *_OF_MERGE, *_OF_MERGED_MODEL]
                raise ValueError(
                    f"unknown key {key!r} in {where}, a merge{did_you_mean(key, known)}"
                )
        names = [ORIGINAL, *(stage.name for stage in before)]
        models = own.get("models") or [ORIGINAL, names[-1]]
        if not isinstance(models, list) or any(model not in names for model in models):
            raise ValueError(
                f"models in {where} is {models!r}; it must be a list of some of {', '.join(names)}"
            )
        merge = Merge(tuple(models), _rule(own, where))
        merge.rule.check(len(models))
        evaluated = {key: own[key] for key in _OF_MERGED_MODEL if key in own}
        # What is merged are whole models, of adapters too.
        trained = {
            key: value for key, value in before[-1].values.items() if key not in _OF_ADAPTERS
        }
        return merge, trained | self._values([(evaluated, where)])


def _rule(own: Mapped, where: str) -> Rule:
    name = own.get("rule") or "linear"
    if name not in RULES:
        raise ValueError(
            f"rule {name!r} in {where} is unknown; it must be one of {', '.join(RULES)}"
            f"{did_you_mean(str(name), RULES)}"
        )
    for key, rules in (("t", ["slerp"]), ("weights", ["linear", "task_arithmetic"])):
        if key in own and name not in rules:
            raise ValueError(f"{key} stands in {where}, but rule {name!r} has none")
    try:
        weights = [float(weight) for weight in own["weights"]] if own.get("weights") else None
        t = float(own.get("t") or 0.5)
    except (ValueError, TypeError) as error:
        raise ValueError(f"weights and t in {where} must be numbers: {error}") from error
    if name == "slerp":
        return Slerp(t)
    return Linear(weights) if name == "linear" else TaskArithmetic(weights)


def _check(staged: StagedRun) -> None:
    """Make all arguments once, which checks them."""
    for stage in staged.stages:
        try:
            processes = engine_of(stage.arguments(*staged.start_of(stage))).processes
            if stage.evaluation_arguments() is not None and processes > 1:
                raise ValueError(
                    f"{EVALUATION} is given with {processes} processes; lrk-eval runs in one, for "
                    "longer than the others would wait: leave it out, and run lrk-eval afterwards"
                )
        except ValueError as error:
            raise ValueError(f"stage {stage.name!r}: {error}") from error
        if stage.merge is not None and ORIGINAL in stage.merge.models and staged.gguf_file:
            raise ValueError(
                f"stage {stage.name!r} merges the original model, which is the GGUF file "
                f"{staged.gguf_file!r}; merging needs safetensors: save it dequantised first"
            )


def _dumped(document: Mapped) -> str:
    """As YAML, less how the run was started, and less secrets."""
    left_out = (*_ACTIONS, *_PREDICTIONS)
    kept = without_secrets({k: value for k, value in document.items() if k not in left_out})
    kept[STAGES] = [without_secrets(stage) for stage in document[STAGES]]
    return yaml.dump(kept, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=100)


class _Plain(yaml.SafeDumper):
    """Writes `4` and `true` as they stand, since `read_configuration` takes everything for text."""


_Plain.yaml_implicit_resolvers = {}

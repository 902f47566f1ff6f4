"""Mutated configurations and command lines of `lrk-train`, `lrk-eval` and `lrk-plan`.

Every one ends as a right dry run or as one sentence, and soon.
"""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import datasets
import huggingface_hub.constants
import pytest
import yaml

from lrk.eval.arguments import EvalArguments
from lrk.eval.command import main as lrk_eval
from lrk.field_types import kinds
from lrk.plan.command import main as lrk_plan
from lrk.train import LrkTrainingArguments
from lrk.train.command import main as lrk_train
from studies.tiny import prose, write_model
from tests.fuzz.outcome import FAULT, Outcome, judge, of_command

pytestmark = pytest.mark.slow

LONGEST_SECONDS = 30

FIELDS = {
    item.name: item for each in (EvalArguments, LrkTrainingArguments) for item in fields(each)
}
HINTS = get_type_hints(EvalArguments) | get_type_hints(LrkTrainingArguments)

SCALARS = (
    *("", "~", "null", "true", "false", "yes", "1", "0", "-1", "2", "7", "64", "1.5", "-0.5"),
    *("1e-5", "1e400", "nan", ".nan", "NaN", "inf", "-inf", ".inf", "Infinity", "1_000", "0x10"),
    *("2147483649", "-2147483649", "1" + "0" * 30, "9" * 5000, "1e-320", "--seed", "-", "--", "-x"),
    *(
        "text",
        "a b",
        "é",
        "日本語",
        "\u202e",
        "🙂",
        "a\u0000b",
        "a\nb",
        "'",
        '"',
        "{",
        "}",
        "[",
        "%s",
    ),
    *("{a: 1}", "{a: {b: [1]}}", "{", "{a: .nan}", "none", "all", "auto", "steps", "epoch", "best"),
    *("/dev/null", "/proc/self/mem", "~/x", "$HOME", "*", "**", "[", "a" * 300),
    *("sdpa", "pose", "impactful", "positions", "longce", "constant", "polynomial", "adafactor"),
)
STRUCTURES: tuple[Any, ...] = (
    *([], [[]], [None], ["a", "b"], ["1", "2"], ["--seed", "1"], [["a"]], [{"a": "b"}]),
    *({}, {"a": "b"}, {"a": None}, {"a": {"b": {"c": []}}}, {"rope": "x"}, {"attention": "no"}),
)
OF_KIND = {
    bool: ("true", "false"),
    int: ("-1", "0", "1", "2", "3", "5", "7", "31", "33", "64", "300", "100000", "2147483647"),
    float: ("-1", "0", "1e-30", "0.1", "0.5", "0.99", "1", "1.5", "2", "7", "1e6", "1e300"),
}
LINES = (
    *("a: &a [*a]", "b: &b x\nc: *b", "<<: {seed: 1}", "? [a]\n: b", "!!python/name:os.system x"),
    *("seed: 1\nseed: 2", "seed: [", "seed: {", "- a", "\tseed: 1", "---\n---", "%YAML 9", "seed"),
    *("a: " + "[" * 2000, "a: " + "{b: " * 100, "seed: |\n  1", "seed: >", "é: 1", "'': 1", "~: 1"),
    *("kernels: {rope: {}}", "kernels: []", "kernels: {}", "kernels: {rope: [1]}", "stages: []"),
    *("stages: 1", "stages: [1]", "stages: {kind: merge}", "stages:", "evaluation: 1", "\x01: 1"),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "model")
    (folder / "text.txt").write_text(prose(120, 0))
    (folder / "other.txt").write_text(prose(60, 1))
    return folder


@pytest.fixture(autouse=True)
def alone(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no cache of others, and nothing of ours in the way."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", world / "cache")
    monkeypatch.chdir(tmp_path)


def training(world: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": str(world / "model"),
        "data": str(world / "text.txt"),
        "eval_data": [str(world / "other.txt")],
        "output_dir": "run",
        "target_length": "256",
        "train_length": "32",
        "max_steps": "2",
        "bf16": "false",
        "dry_run": "true",
    }


def staged(world: Path) -> dict[str, Any]:
    return training(world) | {
        "stages": [
            {"kind": "extension", "learning_rate": "1e-3"},
            {"kind": "annealing", "name": "second", "data": str(world / "other.txt")},
            {"kind": "merge", "models": ["original", "second"], "rule": "linear"},
        ]
    }


def evaluation(world: Path) -> dict[str, Any]:
    return {
        "model": str(world / "model"),
        "output_dir": "results",
        "tasks": ["passkey", "perplexity"],
        "lengths": ["300", "400"],
        "data": [str(world / "text.txt")],
        "stride": "64",
        "trials": "2",
        "dry_run": "true",
    }


def fitting(generator: random.Random, key: str) -> Any:
    """A value that the parser takes, so that what comes after it sees it."""
    item = FIELDS.get(key)
    if item is None:
        return generator.choice(SCALARS)
    alternatives = kinds(HINTS[key])
    choices = [each.value for kind in alternatives if hasattr(kind, "__members__") for each in kind]
    choices += [each for each in item.metadata.get("choices") or () if isinstance(each, str)]
    choices += [each for kind in alternatives for each in OF_KIND.get(kind, ())]
    return generator.choice(choices or SCALARS)


def mutated(generator: random.Random, base: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """One to three values replaced, added or removed, in a stage too where there are stages."""
    content = json.loads(json.dumps(base))
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        listed = content.get("stages")
        stages = [stage for stage in listed if stage] if isinstance(listed, list) else []
        inside = generator.random() < 0.5 and all(isinstance(stage, dict) for stage in stages)
        target = generator.choice(stages) if stages and inside else content
        key = generator.choice(list(target) if generator.random() < 0.3 else list(keys))
        if generator.random() < 0.1:
            target.pop(key, None)
        else:
            anything = STRUCTURES if generator.random() < 0.3 else SCALARS
            fits = generator.random() < 0.5
            target[key] = fitting(generator, key) if fits else generator.choice(anything)
    return content


def as_text(generator: random.Random, content: dict[str, Any]) -> bytes:
    """YAML, at times with a line that is not, or with bytes that are something else."""
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if generator.random() < 0.2:
        text += generator.choice(LINES) + "\n"
    raw = bytearray(text.encode("utf-8", "surrogatepass"))
    if generator.random() < 0.1:
        for _ in range(generator.randint(1, 4)):
            raw[generator.randrange(len(raw))] = generator.randrange(256)
    return bytes(raw)


def as_words(generator: random.Random, content: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for key, value in content.items():
        option = f"--{key.replace('_', '-') if generator.random() < 0.3 else key}"
        if isinstance(value, list):
            words += [option, *map(str, value)]
        elif isinstance(value, dict) or generator.random() < 0.5:
            words += [f"{option}={value}"]
        else:
            words += [option, str(value)]
    return words


def timed(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> Outcome:
    start = time.perf_counter()
    outcome = of_command(main, argv)
    seconds = time.perf_counter() - start
    return outcome if seconds < LONGEST_SECONDS else Outcome(FAULT, f"it took {seconds:.0f} s")


def from_files(
    main: Callable[[Sequence[str]], int], base: dict[str, Any], keys: Sequence[str], count: int
) -> Iterator[tuple[object, Outcome]]:
    generator = random.Random(count)
    for _ in range(count):
        text = as_text(generator, mutated(generator, base, keys))
        Path("config.yaml").write_bytes(text)
        yield text, timed(main, ["config.yaml", "--dry_run"])


def from_words(
    main: Callable[[Sequence[str]], int], base: dict[str, Any], keys: Sequence[str], count: int
) -> Iterator[tuple[object, Outcome]]:
    generator = random.Random(count)
    for _ in range(count):
        words = [*as_words(generator, mutated(generator, base, keys)), "--dry_run"]
        yield words, timed(main, words)


TRAINING = [item.name for item in fields(LrkTrainingArguments) if item.init] + ["kernels.attention"]
STAGES = [*TRAINING, "kind", "name", "models", "rule", "weights", "t", "evaluation"]
EVALUATION = [item.name for item in fields(EvalArguments)]
PLAN = (
    *("model", "length", "fit", "compare", "batch", "implementation", "attention", "dtype", "bf16"),
    *("activation_checkpointing", "keep_attention", "layers_per_checkpoint", "tile_tokens"),
    *("offload_activations", "accumulates", "clips", "optim", "optimizer_in_backward"),
    *("offload_optimizer", "lora_rank", "lora_modules_to_save", "load_in_4bit", "gpu", "tokens"),
    *("dollars_per_hour", "json", "plot"),
)


def test_files_of_a_training_run(world):
    judge(from_files(lrk_train, training(world), TRAINING, 300))


def test_command_lines_of_a_training_run(world):
    judge(from_words(lrk_train, training(world), TRAINING, 300))


def test_files_with_stages(world):
    judge(from_files(lrk_train, staged(world), STAGES, 150))


def test_files_of_an_evaluation(world):
    judge(from_files(lrk_eval, evaluation(world), EVALUATION, 250))


def test_command_lines_of_an_evaluation(world):
    judge(from_words(lrk_eval, evaluation(world), EVALUATION, 150))


def test_command_lines_of_a_plan(world):
    base = {"model": str(world / "model"), "length": "64", "optim": "sgd"}
    generator = random.Random(0)
    judge(
        (words, timed(lrk_plan, words))
        for words in (as_words(generator, mutated(generator, base, PLAN)) for _ in range(250))
    )

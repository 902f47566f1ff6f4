"""transformers' own tests of a model, of every supported type, as it is and with lrk's patch.

    pip install parameterized
    pip download --no-binary :all: --no-deps transformers==5.24.0
    tar xf transformers-5.24.0.tar.gz
    python -m studies.transformers_tests transformers-5.24.0 > docs/transformers_tests.md

Its source distribution ships the tests that all models share (`tests/test_modeling_common.py`,
`tests/test_training_mixin.py`); they run here on small models of each type, from the folder given,
three times: on models as they are, on models all of which come patched (`lrk.patch(model)`), and on
models patched without the attention. A test that passes on stock models and not on patched ones is
either in `DIFFERENCES`, with the reason and the message that it must fail with, or a fault: the
command then ends with status 1. A repository's checkout also has the tests of generation and of
export, which run too; without them two empty classes stand in.
"""

import argparse
import functools
import importlib
import io
import os
import re
import sys
import traceback
import unittest
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import transformers
from transformers import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    PreTrainedConfig,
)

import lrk
from lrk.hf.architectures import SUPPORTED, architecture_of_type

WAYS: dict[str, dict[str, Any] | None] = {
    "as they are": None,
    "patched": {},
    "patched, attention=False": {"attention": False},
}
"""Options of `lrk.patch`; None for models as they are."""

SHARED = "SharedTests"
HEADS = (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
)
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "no_rope_layer_interval": 2,
    "query_pre_attn_scalar": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Set where a config has them."""


class Outcome(NamedTuple):
    """What became of a test: `passed`, `skipped`, `failed` or `missing`, and how it failed.

    Of a test in parts (`subTest`), the first of failed, passed and skipped that holds for a part,
    with a message from each part that failed.
    """

    status: str
    messages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """A test that fails on patched models, and must.

    Attributes:
        test: its name.
        message: part of what it fails with, or of the line that fails.
        reason: why that is right.
    """

    test: str
    message: str
    reason: str


DIFFERENCES = (
    Difference(
        "test_sdpa_can_dispatch_non_composite_models",
        '_attn_implementation == "sdpa"',
        "the attention is lrk's and is called so",
    ),
    Difference(
        "test_model_rope_scaling_frequencies",
        "original_cos_short",
        "the rotary embedding hands out positions and frequencies, not tables of cosines and sines",
    ),
    Difference(
        "test_bc_cache_name_forward",
        "is deprecated",
        "both names of the cache are taken, on every release, without the warning",
    ),
)


# The tests.


def check_source(source: Path) -> None:
    """Raise `ValueError` unless it is the source of the installed transformers, with its tests."""
    file = source / "src/transformers/__init__.py"
    if not file.exists() or not (source / "tests/test_modeling_common.py").exists():
        raise ValueError(f"{source} is no source distribution of transformers, nor a checkout")
    found = re.search(r'__version__ = "([^"]+)"', file.read_text())
    if found is None or found[1] != transformers.__version__:
        raise ValueError(
            f"{source} is of transformers {found and found[1]}: must be of the installed "
            f"{transformers.__version__}"
        )


def tests_of(source: Path) -> ModuleType:
    """transformers' module of the tests that all models share."""
    package = ModuleType("tests_of_transformers")
    package.__path__ = [str(source / "tests")]
    sys.modules[package.__name__] = package
    for name, mixin in (
        ("exporters.test_export", "ExportTesterMixin"),
        ("generation.test_utils", "GenerationTesterMixin"),
    ):
        if not (source / "tests" / f"{name.replace('.', '/')}.py").exists():
            _stand_in(f"{package.__name__}.{name}", mixin)
    return importlib.import_module(f"{package.__name__}.test_modeling_common")


def _stand_in(name: str, mixin: str) -> None:
    folder, _, _ = name.rpartition(".")
    sys.modules[folder] = ModuleType(folder)
    sys.modules[name] = ModuleType(name)
    setattr(sys.modules[name], mixin, type(mixin, (), {}))


class Tester:
    """What the shared tests ask of a model type: a small config, and inputs that fit it."""

    batch_size, seq_length, is_training = 13, 7, True

    def __init__(self, model_type: str) -> None:
        self.config_class = type(AutoConfig.for_model(model_type))
        self.causal_lm_class = architecture_of_type(model_type).causal_lm
        for name, value in vars(self.get_config()).items():
            if name in SIZES:
                setattr(self, name, value)

    def get_config(self) -> PreTrainedConfig:
        default = self.config_class()
        sizes: dict[str, Any] = {
            name: value for name, value in SIZES.items() if hasattr(default, name)
        }
        if "sliding_attention" in (getattr(default, "layer_types", None) or ()):
            sizes["layer_types"] = ["sliding_attention", "full_attention"]
        if getattr(default, "sliding_window", None) is not None:
            sizes["sliding_window"] = 4
        return self.config_class(**sizes)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, Any]]:
        """Row i of the batch has i + 1 tokens, at most all, and padding behind them."""
        config = self.get_config()
        shape = self.batch_size, self.seq_length
        return config, {
            "input_ids": torch.randint(3, config.vocab_size, shape),
            "attention_mask": torch.ones(shape, dtype=torch.long).tril(),
        }


def test_case(model_type: str, source: Path) -> type[unittest.TestCase]:
    """The shared tests, of a type's base model, its language model and its other heads."""
    common = tests_of(source)
    training = importlib.import_module(f"{common.__package__}.test_training_mixin")
    stock = architecture_of_type(model_type)
    tester = Tester(model_type)
    heads = [kinds[tester.config_class] for kinds in HEADS if tester.config_class in kinds]

    def start(case: Any) -> None:
        transformers.set_seed(0)

    mixins = common.ModelTesterMixin, common.GenerationTesterMixin, training.TrainingTesterMixin
    content = {
        "model_tester": tester,
        "all_model_classes": (stock.base_model, stock.causal_lm, *heads),
        "setUp": start,
    }
    return type(SHARED, (*mixins, unittest.TestCase), content)


# Running them.


class Record(unittest.TestResult):
    """The outcome of each test by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, Outcome] = {}

    def _note(self, test: Any, status: str, *messages: str) -> None:
        name = test.id().split(f"{SHARED}.", 1)[1].split()[0]  # before that of a part
        before = self.outcomes.get(name, Outcome(status))
        worst = min(before.status, status, key=("failed", "passed", "skipped").index)
        self.outcomes[name] = Outcome(worst, before.messages + messages)

    def addSuccess(self, test: Any) -> None:
        self._note(test, "passed")

    def addSkip(self, test: Any, reason: str) -> None:
        self._note(test, "skipped")

    def addFailure(self, test: Any, err: Any) -> None:
        self.addError(test, err)

    def addError(self, test: Any, err: Any) -> None:
        frames = traceback.extract_tb(err[2])
        line = [frame.line for frame in frames if "unittest" not in Path(frame.filename).parts][-1]
        self._note(test, "failed", f"{err[0].__name__}: {err[1]}; at: {line}")

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is None:
            self.addSuccess(subtest)
        else:
            self.addError(subtest, err)


def run(source: Path, model_type: str, way: str) -> dict[str, Outcome]:
    """The outcomes of all tests of a type; for a process of its own."""
    os.environ["_INSIDE_SUB_PROCESS"] = "1"  # what asks for a process of its own has one
    torch.set_num_threads(1)  # for models this small more threads only wait for each other
    options = WAYS[way]
    if options is not None:
        patch_all(model_type, options)
    record = Record()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        unittest.TestLoader().loadTestsFromTestCase(test_case(model_type, source)).run(record)
    return record.outcomes


def patch_all(model_type: str, options: dict[str, Any]) -> None:
    """Every model of the type that is made from now on comes patched.

    But for one that is asked for with the eager attention, where lrk would attend: it stays as it
    is, so that the tests of what only that attention does stay tests.
    """
    stock = architecture_of_type(model_type)
    for kind in (stock.base_model, stock.causal_lm):
        kind.__init__ = _patching(kind.__init__, options)  # type: ignore[method-assign]


def _patching(init: Callable[..., None], options: dict[str, Any]) -> Callable[..., None]:
    @functools.wraps(init)
    def patching(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        eager = config._attn_implementation == "eager"
        init(self, config, *args, **kwargs)
        if options.get("attention") is False or not eager:
            lrk.patch(self, **options)

    return patching


# What they say.


class Verdict(NamedTuple):
    """One test that does not do with the patch what it does without."""

    model_type: str
    way: str
    test: str
    outcome: Outcome
    reason: str | None
    """Of `DIFFERENCES`; None for a fault."""


Outcomes = dict[str, dict[str, dict[str, Outcome]]]
"""By model type, way and test."""


def verdicts(outcomes: Outcomes) -> list[Verdict]:
    """All tests that pass on stock models and not on patched ones."""
    return [
        Verdict(model_type, way, test, found, _reason(test, found))
        for model_type, ways in outcomes.items()
        for way in list(WAYS)[1:]
        for test, stock in ways["as they are"].items()
        for found in [ways[way].get(test, Outcome("missing"))]
        if stock.status == "passed" and found.status != "passed"
    ]


def _reason(test: str, found: Outcome) -> str | None:
    if found.status != "failed":
        return None
    for each in DIFFERENCES:
        if each.test == test and all(each.message in message for message in found.messages):
            return each.reason
    return None


def report(outcomes: Outcomes) -> str:
    """A page of Markdown."""
    different = verdicts(outcomes)
    header = ["model type", "tests that pass as they are"]
    for way in list(WAYS)[1:]:
        header += [f"pass {way}", "must differ", "faults"]
    rows = [header, ["---"] * len(header)]
    for model_type, ways in outcomes.items():
        passed = [test for test, found in ways["as they are"].items() if found.status == "passed"]
        counts = [str(len(passed))]
        for way in list(WAYS)[1:]:
            here = [v for v in different if (v.model_type, v.way) == (model_type, way)]
            wrong = sum(v.reason is None for v in here)
            counts += [str(len(passed) - len(here)), str(len(here) - wrong), str(wrong)]
        rows.append([f"`{model_type}`", *counts])
    reasons = [["test", "model types", "why"], ["---"] * 3]
    for each in DIFFERENCES:
        of = [v for v in different if (v.test, v.reason) == (each.test, each.reason)]
        if of:
            types = sorted({v.model_type for v in of})
            named = "all" if len(types) == len(outcomes) else ", ".join(types)
            reasons.append([f"`{each.test}`", named, each.reason])
    faults = [
        f"- `{v.model_type}`, {v.way}: `{v.test}`: {_shortened(v.outcome)}"
        for v in different
        if v.reason is None
    ]
    failed = sorted(
        {
            f"`{test}` of `{model_type}`"
            for model_type, ways in outcomes.items()
            for test, found in ways["as they are"].items()
            if found.status == "failed"
        }
    )
    return PAGE.format(
        version=transformers.__version__,
        table=_table(rows),
        reasons=_table(reasons),
        faults="\n".join(faults) or "None.",
        failed=", ".join(failed) or "none",
    )


PAGE = """# transformers' own tests, with the patch

Made by `python -m studies.transformers_tests`, transformers {version}. The tests that transformers
runs on every model (`ModelTesterMixin`, `TrainingTesterMixin` of its source distribution), on small
models of each type: as they are, patched (`lrk.patch(model)`), and patched with `attention=False`.
Those that need a GPU, another package or another kind of model are skipped and not counted. Where
lrk attends, a model that a test asks for with the eager attention is left as it is; and
`test_eager_matches_sdpa_inference` compares lrk's attention with the stock eager one, in float32,
bfloat16 and float16, with padding on either side and without (not for Gemma 2 and gpt-oss, whose
stock models have no sdpa attention). The source distribution has no tests of generation: those of
lrk are in [support.md](support.md).

{table}

## What must differ

{reasons}

## Faults

{faults}

## Tests that fail without the patch

On the small models of this study: {failed}.
"""


def _shortened(outcome: Outcome) -> str:
    first = outcome.messages[0] if outcome.messages else outcome.status
    return " ".join(first.split())[:300]


def _table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder of transformers' source")
    parser.add_argument("--types", nargs="+", choices=SUPPORTED, default=SUPPORTED)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    check_source(arguments.source)
    os.environ["HF_HUB_OFFLINE"] = "1"
    jobs = [(model_type, way) for model_type in arguments.types for way in WAYS]
    with ProcessPoolExecutor(
        arguments.processes, mp_context=get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        done = pool.map(functools.partial(_run, arguments.source), jobs)
        outcomes: Outcomes = {model_type: {} for model_type in arguments.types}
        for (model_type, way), found in zip(jobs, done, strict=True):
            outcomes[model_type][way] = found
            counts = Counter(outcome.status for outcome in found.values())
            print(f"{model_type}, {way}: {dict(counts)}", file=sys.stderr)
    print(report(outcomes), end="")
    return int(any(v.reason is None for v in verdicts(outcomes)))


def _run(source: Path, job: tuple[str, str]) -> dict[str, Outcome]:
    return run(source, *job)


if __name__ == "__main__":
    sys.exit(main())

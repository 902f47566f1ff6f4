"""Two processes that share each sample, over FSDP2 on a CPU, against one process that has it."""

import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import MistralConfig, MistralForCausalLM, Trainer
from transformers.utils.import_utils import is_accelerate_available

from lrk.recipe.impactful import ImpactfulTokens
from lrk.train import LrkTrainer, LrkTrainingArguments, train
from lrk.train.arguments import processes
from lrk.train.engine import FSDP2, Engine
from lrk.train.finite import NotFiniteError
from lrk.train.sequence_parallel import _check_releases
from studies.ranks import fsdp_on_cpu, run_ranks
from studies.tiny import SHAPE

pytestmark = pytest.mark.skipif(
    not is_accelerate_available("1.12.0"), reason="sequence_parallel needs accelerate 1.12"
)
SIZE, STEPS = 2, 3
EXACT = 2e-6
"""Beside the value, in float32."""
EVALUATION, TYPES, WINDOWS = "evaluation with a sample left over", "types of tokens", "windows"
CASES: dict[str, dict[str, Any]] = {
    EVALUATION: {
        "per_device_eval_batch_size": 2,
        "eval_samples": 3,
        "eval_lengths": [256],
        "include_num_input_tokens_seen": "all",
    },
    TYPES: {"token_loss": "impactful", "impactful_weight": 5.0},
    "longce": {"token_loss": "longce", "longce_short_context": 24, "longce_short_stride": 8},
    "temperature, reach and checkpointing": {
        "attention_temperature": 1.5,
        "position_reach": 2.0,
        "gradient_checkpointing": True,
        "keep_attention": True,
    },
    WINDOWS: {"gradient_accumulation_steps": 1},
}
WATCHED = ("loss", "grad_norm", "eval_256_loss", "num_input_tokens_seen")


@pytest.fixture(scope="module")
def given(model_folder, corpus, tokenizer, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Arguments of each case, without those of processes."""
    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    config = MistralConfig(**SHAPE, sliding_window=100)
    MistralForCausalLM(config).save_pretrained(folder / "mistral")
    tokenizer.save_pretrained(folder / "mistral")
    table = folder / "impactful.json"
    table.write_text(ImpactfulTokens.of(tokenizer, range(0, len(tokenizer), 5)).to_json())
    common = {
        "model_name_or_path": str(model_folder),
        "data": [str(corpus / "*.txt")],
        "target_length": 256,
        "train_length": 32,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "bf16": False,
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    files: dict[str, dict[str, Any]] = {
        EVALUATION: {"eval_data": [str(corpus / "held_out" / "*.txt")]},
        TYPES: {"impactful_tokens": str(table)},
        WINDOWS: {"model_name_or_path": str(folder / "mistral")},
    }
    return {name: common | own | files.get(name, {}) for name, own in CASES.items()}


def histories(cases: dict[str, dict[str, Any]], cache: Path) -> dict[str, list[dict[str, Any]]]:
    """What each run logged, of what is watched."""
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()
    found = {}
    for name, options in cases.items():
        with fsdp_on_cpu():
            trainer = train(LrkTrainingArguments(**options))
        rows = trainer.state.log_history
        found[name] = [{key: row[key] for key in WATCHED if key in row} for row in rows]
    return found


@pytest.fixture(scope="module")
def logged(given, tmp_path_factory) -> list[dict[str, list[dict[str, Any]]]]:
    """Of one process, then of each of two."""
    folder = tmp_path_factory.mktemp("runs")
    cache = folder / "datasets"

    def cases(run: str, **more: Any) -> dict[str, dict[str, Any]]:
        return {
            name: {**options, "output_dir": str(folder / run / str(place)), **more}
            for place, (name, options) in enumerate(given.items())
        }

    alone = histories(cases("alone"), cache)
    return [alone, *run_ranks(histories, SIZE, cases("shared", sequence_parallel=SIZE), cache)]


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_that_of_one_process(logged, case):
    alone, *shared = (found[case] for found in logged)
    assert sum("grad_norm" in row for row in alone) == STEPS
    for rows in shared:
        assert [row.keys() for row in rows] == [row.keys() for row in alone]
        for row, expected in zip(rows, alone, strict=True):
            for name, value in expected.items():
                assert math.isclose(row[name], value, rel_tol=EXACT), (name, row, expected)


def test_evaluation_has_been_compared(logged):
    rows = logged[0][EVALUATION]
    assert any("eval_256_loss" in row for row in rows)


def batch_at_a_nan(options: dict[str, Any]) -> str:
    """The sentence with which a run ends whose loss is no number."""

    class Spoiled(LrkTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs) * math.nan

    with fsdp_on_cpu(), pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("lrk.train.session.LrkTrainer", Spoiled)
        with pytest.raises(NotFiniteError) as caught:
            train(LrkTrainingArguments(**options))
    return str(caught.value)


def test_the_batch_that_is_saved_at_a_nan_is_whole(given, tmp_path):
    options = {**given[WINDOWS], "output_dir": str(tmp_path), "sequence_parallel": SIZE}
    sentences = run_ranks(batch_at_a_nan, SIZE, options)
    assert all("step 1 has loss nan" in sentence for sentence in sentences)
    folder = tmp_path / "not-finite-1"
    of_ranks = [load_file(folder / f"batch-{rank}.safetensors") for rank in range(SIZE)]
    for batch in of_ranks:
        assert batch["input_ids"].shape == (2, 32)
        assert torch.equal(batch["input_ids"], of_ranks[0]["input_ids"])


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Trainer, "_prepare_context_parallel_inputs"), (Accelerator, "_prepare_cp")],
)
def test_releases_without_what_is_replaced_are_refused(monkeypatch, owner, name):
    _check_releases(SIZE)
    monkeypatch.delattr(owner, name)
    with pytest.raises(ValueError, match=f"sequence_parallel is 2, but {owner.__name__} .* {name}"):
        _check_releases(SIZE)


def test_compiled_models_are_refused(arguments):
    given = arguments(torch_compile=True)
    given.sequence_parallel = SIZE
    with pytest.raises(ValueError, match="sequence_parallel is 2 with torch_compile"):
        processes._check_sequence_parallel(given, Engine(FSDP2, processes=SIZE))

"""Damaged models, results and files of tasks: a right value, or one sentence that names the file.

Seeded, so that a fault can be run again: the input that `judge` prints is the seed and the file.
"""

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import datasets
import pytest
import torch
from safetensors.torch import load, load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrk import merge
from lrk.analysis.folder import TABLE
from lrk.data.command import main as lrk_data
from lrk.eval import command as evaluating
from lrk.eval.fitting import Trial
from lrk.eval.haystack import read_essay
from lrk.eval.question_answering import question_answering, read_hotpotqa, read_squad
from lrk.eval.words import read_words
from lrk.merge.shard import read_header
from lrk.recipe.impactful import ImpactfulTokens, read_impactful
from lrk.train import command as training
from studies.tiny import prose, write_corpus, write_model
from tests.fuzz.mutation import damaged, damaged_json, damaged_safetensors
from tests.fuzz.outcome import FAULT, RIGHT, SENTENCE, Outcome, judge, of_call, of_command

pytestmark = pytest.mark.slow

WEIGHTS = "model.safetensors"
Damage = Callable[[Random, bytes], bytes]
DAMAGES: dict[str, tuple[Damage, ...]] = {
    ".safetensors": (damaged_safetensors,),
    ".json": (damaged_json, damaged_json, damaged_json, damaged),
}
# A value of the config that `lrk.patch` refuses is named with it, and not with its file.
OF_CONFIG = ("config.", "rope_parameters")


@pytest.fixture(scope="module", autouse=True)
def quiet_datasets(tmp_path_factory):
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    datasets.disable_progress_bars()
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A model in one file, the same in several, another one, and one that reaches farther."""
    root = tmp_path_factory.mktemp("models")
    write_model(root / "whole")
    found = {name: root / name for name in ("whole", "shards", "other", "extended")}
    model = AutoModelForCausalLM.from_pretrained(root / "whole")
    model.save_pretrained(root / "shards", max_shard_size=40_000)
    for name in ("other", "extended"):
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(root / name)
        model.config.max_position_embeddings *= 2
    for name in ("shards", "other", "extended"):
        for file in (root / "whole").glob("tokenizer*"):
            shutil.copy(file, found[name])
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "texts"
    write_corpus(folder, 12)
    return folder


def damage_one(random: Random, folder: Path) -> str:
    """Damage one file of a folder, and say which."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    file = random.choice([path for path in files if not path.name.startswith(".")])
    content = file.read_bytes()
    file.write_bytes(random.choice(DAMAGES.get(file.suffix, (damaged,)))(random, content))
    return file.name


def named(outcome: Outcome, *names: str) -> Outcome:
    """A sentence that does not say of what it is, is a fault."""
    if outcome.kind == SENTENCE and not any(name in outcome.text for name in names):
        return Outcome(FAULT, f"it names none of {names}: {outcome.text}")
    return outcome


def checked(outcome: Outcome, check: Callable[[], object]) -> Outcome:
    """What was accepted must be right."""
    return of_call(check) if outcome.kind == RIGHT else outcome


def equal(ours: dict, right: dict) -> None:
    assert ours.keys() == right.keys()
    for name, value in right.items():
        assert torch.equal(ours[name], value), name


# Models.


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = folder.glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_headers_of_safetensors(models, tmp_path):
    """What is accepted, the library of that name reads to the same shapes."""
    whole, file = (models["whole"] / WEIGHTS).read_bytes(), tmp_path / WEIGHTS

    def read() -> None:
        tensors = read_header(file)
        right = load(file.read_bytes())
        equal({name: torch.tensor(tensor.shape) for name, tensor in tensors.items()},
              {name: torch.tensor(tensor.shape) for name, tensor in right.items()})  # fmt: skip
        for name, tensor in tensors.items():
            blocks = torch.cat([torch.empty(0), *tensor.blocks()])
            torch.testing.assert_close(
                blocks, right[name].double().flatten(), rtol=0, atol=0, equal_nan=True
            )

    def tried(seed: int) -> tuple[int, Outcome]:
        file.write_bytes(damaged_safetensors(Random(seed), whole))
        return seed, named(of_call(read), str(file))

    judge(map(tried, range(3000)))


@pytest.mark.parametrize("kind", ["whole", "shards"])
def test_merging(models, tmp_path, kind):
    output = tmp_path / "merged"

    def right(folder: Path) -> None:
        """The mean of what the library reads."""
        ours, one, two = map(tensors_of, (output, models["other"], folder))
        equal(ours, {name: ((one[name].double() + two[name].double()) / 2).float() for name in one})
        AutoModelForCausalLM.from_pretrained(output)

    def tried(seed: int) -> tuple[tuple[int, str], Outcome]:
        random = Random(seed)
        folder = Path(shutil.copytree(models[kind], tmp_path / "damaged"))
        name = damage_one(random, folder)
        two = [str(models["other"]), str(folder)]
        command = ["linear", *two, "--config_from", two[0], "--output_dir", str(output)]
        outcome = checked(of_command(merge.main, command), partial(right, folder))
        if outcome.kind == SENTENCE and output.exists():
            outcome = Outcome(FAULT, f"{output} is there: {outcome.text}")
        shutil.rmtree(folder)
        shutil.rmtree(output, ignore_errors=True)
        return (seed, name), named(outcome, str(folder))

    judge(map(tried, range(150)))


def eval_words(model: Path, data: Path, output: Path) -> list[str]:
    return [
        *("--model", str(model), "--data", str(data), "--output_dir", str(output)),
        *("--tasks", "perplexity", "--lengths", "48", "--stride", "16", "--documents", "2"),
        *("--device", "cpu"),
    ]


@pytest.mark.parametrize("kind", ["whole", "shards"])
def test_evaluating_a_damaged_model(models, corpus, tmp_path, kind):
    def finite() -> None:
        losses = json.loads((tmp_path / "results" / "results.json").read_text())["losses"]
        assert all(math.isfinite(loss) for row in losses.values() for loss in row.values()), losses

    def tried(seed: int) -> tuple[tuple[int, str], Outcome]:
        random = Random(seed)
        folder = Path(shutil.copytree(models[kind], tmp_path / "damaged"))
        name = damage_one(random, folder)
        words = eval_words(folder, corpus, tmp_path / "results")
        outcome = of_command(evaluating.main, [*words, "--dry_run"])
        if outcome.kind == RIGHT and random.random() < 0.5:
            outcome = checked(of_command(evaluating.main, words), finite)
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        return (seed, name), named(outcome, str(folder), *OF_CONFIG)

    judge(map(tried, range(100)))


def test_a_dry_run_of_training_on_a_damaged_model(models, corpus, tmp_path):
    def tried(seed: int) -> tuple[tuple[int, str], Outcome]:
        random = Random(seed)
        folder = Path(shutil.copytree(models["whole"], tmp_path / "damaged"))
        name = damage_one(random, folder)
        words = [
            *("--model_name_or_path", str(folder), "--data", str(corpus)),
            *("--target_length", "128", "--train_length", "48", "--max_steps", "2"),
            *("--output_dir", str(tmp_path / "run"), "--report_to", "none"),
            *("--use_cpu", "--dry_run"),
        ]
        outcome = of_command(training.main, words)
        shutil.rmtree(folder)
        return (seed, name), named(outcome, str(folder), *OF_CONFIG)

    judge(map(tried, range(60)))


# Results.


def test_results_of_an_evaluation(models, corpus, tmp_path):
    words = partial(eval_words, models["whole"], corpus)
    assert evaluating.main(words(tmp_path / "whole")) == 0
    right = json.loads((tmp_path / "whole" / "results.json").read_text())["losses"]
    folder = tmp_path / "damaged"

    def check() -> None:
        assert json.loads((folder / "results.json").read_text())["losses"] == right

    def tried(seed: int) -> tuple[tuple[int, str], Outcome]:
        shutil.copytree(tmp_path / "whole", folder)
        name = damage_one(Random(seed), folder)
        outcome = checked(of_command(evaluating.main, words(folder)), check)
        shutil.rmtree(folder)
        return (seed, name), named(outcome, str(folder))

    judge(map(tried, range(60)))


def test_an_analysis(models, corpus, tmp_path):
    folder = tmp_path / "damaged"
    words = [
        *("--model", str(models["whole"]), "--extended", str(models["extended"])),
        *("--data", str(corpus), "--length", "40", "--samples", "10", "--parts_of_speech", "false"),
        *("--min_lift", "0.5", "--device", "cpu", "--output_dir", str(folder)),
    ]
    assert lrk_data(["analyze", *words]) == 0
    folder.rename(tmp_path / "whole")
    table = (tmp_path / "whole" / "impactful.json").read_bytes()

    def check() -> None:
        assert (folder / "impactful.json").read_bytes() == table

    def tried(seed: int) -> tuple[tuple[int, str], Outcome]:
        shutil.copytree(tmp_path / "whole", folder)
        name = damage_one(Random(seed), folder)
        outcome = checked(of_command(lrk_data, ["analyze", *words]), check)
        shutil.rmtree(folder)
        return (seed, name), named(outcome, str(folder), str(models["whole"]), "extended")

    judge(map(tried, range(60)))


def test_tables_of_impactful_tokens(models, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(models["whole"])
    whole = ImpactfulTokens.of(tokenizer, range(3, 90, 4), {"method": "delta"}).to_json().encode()
    file = tmp_path / TABLE

    def tried(seed: int) -> tuple[int, Outcome]:
        random = Random(seed)
        file.write_bytes(random.choice((damaged, damaged_json))(random, whole))
        return seed, named(of_call(lambda: read_impactful(file, tokenizer).mask()), str(file))

    judge(map(tried, range(300)))


# Files of tasks.

QUESTION = {"question": "Who?", "answers": [{"text": "Ada"}], "is_impossible": False}
SQUAD = {"data": [{"paragraphs": [{"context": f"Part {i}.", "qas": [QUESTION]} for i in range(3)]}]}
HOTPOTQA = [{"question": "Who?", "answer": "Ada", "context": [["Title", ["One.", "Two."]]]}] * 3


def ask(read: Callable, path: Path) -> None:
    data = read(path)
    for index in range(len(data.questions)):
        prompt = question_answering(data).prompt(Trial(0, "qa_1", 0, index), 5)
        assert all(answer.encode() for answer in prompt.references)
        prompt.text.encode()


@pytest.mark.parametrize(
    ("content", "use"),
    [
        (SQUAD, partial(ask, read_squad)),
        (HOTPOTQA, partial(ask, read_hotpotqa)),
        ({"1": "pear", "2": "fig"}, lambda path: "".join(read_words(path)).encode()),
        (["pear", "fig", "plum"], lambda path: "".join(read_words(path)).encode()),
        ({"text": prose(4, 0)}, lambda path: read_essay(path).sentences(90)[0].encode()),
    ],
    ids=["squad", "hotpotqa", "an object of words", "a list of words", "haystack"],
)
def test_files_of_tasks(tmp_path, content, use):
    whole, file = json.dumps(content).encode(), tmp_path / "file.json"

    def tried(seed: int) -> tuple[int, Outcome]:
        random = Random(seed)
        file.write_bytes(random.choice((damaged, damaged_json))(random, whole))
        return seed, named(of_call(partial(use, file)), str(file))

    judge(map(tried, range(400)))

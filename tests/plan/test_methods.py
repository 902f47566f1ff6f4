"""Methods side by side: every sampler has a row, and rows are the plans of their lengths."""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from lrk.plan import Settings, plan
from lrk.plan.command import main
from lrk.plan.gpus import GPUS
from lrk.plan.ledger import HOST
from lrk.plan.methods import OF_SHARE, OF_WINDOW, Budget, compare_methods, methods_table
from lrk.positions import SAMPLERS
from tests.plan.conftest import SHAPE

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
TARGET = 1024
ONE_LAYER = SHAPE | {"num_hidden_layers": 1}
SETTINGS = Settings(length=2, optim="sgd", offload_activations=True)
COMPARED = ["--compare-methods", "--target_length", str(TARGET), "--optim", "sgd"]


@pytest.fixture
def path(tmp_path, config):
    config.to_json_file(tmp_path / "config.json")
    return tmp_path


@pytest.fixture(scope="module")
def costs():
    return compare_methods("tiny", LlamaConfig(**ONE_LAYER), SETTINGS, TARGET)


@pytest.fixture
def config():
    return LlamaConfig(**ONE_LAYER)


def test_every_sampler_has_a_row(costs):
    assert {name for cost in costs for name in cost.methods} == SAMPLERS.keys()
    assert [cost.length for cost in costs] == [1024, 307, 307, 256, 256]
    assert [cost.stands_for for cost in costs] == [TARGET] * 4 + [256]
    assert (costs[1].methods, costs[3].methods) == (OF_SHARE, OF_WINDOW)


def test_rows_are_the_plans_of_their_lengths(costs, config):
    distilled = [cost.plan.settings.distill for cost in costs]
    assert distilled == ["none", "none", "views", "none", "none"]
    for cost in costs[1:3]:
        settings = Settings(
            length=cost.length,
            optim="sgd",
            offload_activations=True,
            distill=cost.plan.settings.distill,
        )
        found = plan("tiny", config, settings)
        assert (cost.flops, cost.plan.usages) == (found.flops, found.usages)
        assert cost.seconds == found.estimate()["seconds"]
        assert cost.host_gib == found.parts_gib[HOST] > 0
    full, share, views, window, control = costs
    # Linear layers cost by tokens, attention by their square.
    assert 3.3 * share.flops < full.flops < (TARGET / 307) ** 2 * share.flops
    # A forward pass more, beside two and a backward pass.
    assert 1.2 * share.flops < views.flops < 1.4 * share.flops
    assert window.flops == control.flops < share.flops
    assert all(cost.fits for cost in costs)


def test_costs_of_a_whole_run(costs, config):
    full, share = costs[0], costs[1]
    by_samples, by_tokens = Budget(samples=1000, dollars_per_hour=2), Budget(tokens=1024_000)
    assert full.days(by_samples) == pytest.approx(1000 * full.seconds / 86_400)
    assert full.days(by_tokens) == pytest.approx(full.days(by_samples))
    assert share.days(by_tokens) == pytest.approx(share.days(by_samples) * 1024 / 307)
    assert full.dollars(by_samples) == pytest.approx(full.days(by_samples) * 48)
    assert full.dollars(by_tokens) is full.days(Budget()) is None
    found = plan("tiny", config, Settings(length=307, optim="sgd", offload_activations=True))
    assert share.days(by_tokens) == pytest.approx(found.estimate(1024_000)["days"])
    heading = methods_table(costs, by_samples).splitlines()[3]
    assert "days    dollars  position_method" in heading
    assert "days" not in methods_table(costs, Budget())


def test_a_sample_of_a_batch_costs_what_it_costs_alone(costs, config):
    full = costs[0]
    settings = dataclasses.replace(full.plan.settings, batch=2)
    one_of_two = dataclasses.replace(full, plan=plan("tiny", config, settings))
    assert one_of_two.plan.flops == 2 * full.plan.flops
    assert one_of_two.flops == full.flops
    assert one_of_two.seconds == pytest.approx(full.seconds)


def test_processes_that_share_samples(costs, config):
    """A sample costs the same, whoever computes it; lengths are what can be shared."""
    shared = Settings(length=8, optim="sgd", fsdp=4, sequence_parallel=4, accumulates=False)
    many = compare_methods("tiny", config, shared, TARGET)
    assert [cost.length for cost in many] == [1024, 312, 312, 256, 256]
    assert many[0].flops == pytest.approx(costs[0].flops, rel=0.01)
    assert many[0].seconds * many[0].plan.tokens / TARGET == many[0].plan.estimate()["seconds"]
    price = Budget(samples=10, dollars_per_hour=3)
    assert many[0].dollars(price) == pytest.approx(4 * 24 * 3 * many[0].days(price))
    text = methods_table(many, Budget())
    assert "Estimates for 4 h100 at 40% of the published peak, communication after all" in text


def test_what_does_not_fit_is_said_in_its_row(costs, monkeypatch):
    assert "does not fit" not in methods_table(costs, Budget())
    between = (costs[0].plan.device_gib + costs[1].plan.device_gib) / 2
    monkeypatch.setitem(GPUS, "h100", GPUS["h100"]._replace(gib=between))
    full, share = methods_table(costs, Budget()).splitlines()[4:6]
    needs = f"(full length): does not fit, needs {costs[0].plan.device_gib:.1f} GiB"
    assert full.endswith(needs)
    assert share.endswith("endprompt")


def test_on_a_cpu_nothing_is_estimated(costs, config):
    settings = dataclasses.replace(costs[0].plan.settings, gpu="cpu")
    full = dataclasses.replace(costs[0], plan=plan("tiny", config, settings))
    assert full.seconds is full.fits is full.days(Budget(samples=1)) is None
    text = methods_table([full, full], Budget(samples=1))
    assert "peak" not in text
    assert "1.000" in text


def test_the_command_prints_and_writes_the_rows(path, capsys):
    words = ["--model", str(path), *COMPARED, "--json", str(path / "rows.json")]
    assert main([*words, "--samples", "100", "--train_share", "0.5"]) == 0
    text = capsys.readouterr().out
    assert f"{path}, from 256 to 1,024 tokens, lrk, bfloat16, sgd, traced without a GPU" in text
    rows = json.loads((path / "rows.json").read_text())
    assert [row["train_length"] for row in rows] == [1024, 512, 512, 256, 256]
    assert [row["stands_for"] for row in rows] == [1024, 1024, 1024, 1024, 256]
    assert rows[0]["cost_of_a_sample"] == rows[0]["cost_of_a_token"] == 1
    assert rows[1]["cost_of_a_token"] == pytest.approx(2 * rows[1]["cost_of_a_sample"])
    for row in rows:
        assert row["plan"]["length"] == row["train_length"]
        assert row["flops_of_a_sample"] == row["plan"]["flops"]
        assert row["days"] == pytest.approx(100 * row["seconds_of_a_sample"] / 86_400)
        line = f"{row['train_length']:9,}{row['stands_for']:11,}"
        assert line in text
    assert "for 0.50 of the samples" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*COMPARED, "--length", "48"], "--length does not go with --compare_methods"),
        ([*COMPARED, "--fit", "80"], "--fit does not go with --compare_methods"),
        ([*COMPARED, "--compare"], "--compare does not go with --compare_methods"),
        ([*COMPARED, "--plot", "a.png"], "--plot does not go with --compare_methods"),
        (["--compare_methods"], "--compare_methods needs --target_length"),
        (["--length", "48", "--target_length", "99"], "--target_length belongs to --compare_metho"),
        (["--length", "48", "--train_share", "0.5"], "--train_share belongs to --compare_methods"),
        (["--length", "48", "--samples", "9"], "--samples belongs to --compare_methods"),
        ([*COMPARED, "--samples", "9", "--tokens", "9"], "give one of --tokens and --samples"),
        ([*COMPARED, "--samples", "0"], "--samples is 0; it must be positive"),
        ([*COMPARED, "--train_share", "1"], "train_share is 1; it must be between 0 and 1"),
        ([*COMPARED, "--train_share", "nan"], "train_share is nan; it must be between 0 and 1"),
        ([*COMPARED, "--target_length", "256"], "target_length is 256; it must be above the win"),
        ([*COMPARED, "--implementation", "stock"], "implementation is 'stock'; methods are comp"),
        (
            [*COMPARED, "--fsdp", "6", "--sequence_parallel", "3"],
            "target_length is 1024; with sequence_parallel 3 it must be a multiple of 6",
        ),
    ],
)
def test_bad_input_is_one_sentence(path, words, message, capsys):
    assert main(["--model", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_teacher_has_a_row_of_its_own(config):
    settings = Settings(length=2, optim="sgd", distill="views")
    with pytest.raises(ValueError, match="distill is 'views'; methods are compared without a te"):
        compare_methods("tiny", config, settings, TARGET)


def test_the_table_of_the_page(capsys):
    words = ["--target_length", "131072", "--tile_tokens", "4096", "--offload_activations"]
    assert main(["--model", "llama-3-8b", "--compare_methods", *words]) == 0
    assert f"```text\n{capsys.readouterr().out}```\n" in PAGE

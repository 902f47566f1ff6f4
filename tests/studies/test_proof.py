"""The study of docs/proof.md: its task, its statistics, and that it can be interrupted."""

import json

import pytest
import torch

from lrk.decode.contrast import ContrastedForCausalLM
from lrk.frequencies import rope_frequencies
from lrk.longrope import Evolution
from lrk.rope_factors import read_rope_factors
from studies.proof import factors, study
from studies.proof import model as tiny
from studies.proof.__main__ import main
from studies.proof.factors import FACTORS, find_factors
from studies.proof.methods import ABLATION, DECODING, METHODS, ROPE, SHORT, TARGET, WINDOW
from studies.proof.report import draw, interval, p_value, search_table, table, verdict
from studies.proof.task import CUE, JUMP, MARK, SPAN, cycles, quotes, segment_lengths


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("length", [32, 128, 307])
def test_a_quote_repeats_what_stood_at_its_depth(length):
    batch = quotes(4, length, generator())
    ids, labels, depth = batch
    labelled = labels != -100
    assert torch.equal(ids[labelled], labels[labelled])
    assert labelled.sum() == 4 * (length // 2 // SPAN) * (SPAN - 1 - CUE)
    body = length - length // 2 // SPAN * SPAN
    assert not labelled[:, :body].any()
    for row in range(4):
        source = (depth[row] * body).round().long()
        assert torch.equal(ids[row, source[labelled[row]]], ids[row, labelled[row]])
        # A cue alone does not say the token: it stands before the place that it names.
        starts = (ids[row] == MARK).nonzero().flatten()
        assert (starts >= body).all()
        for start in starts.tolist():
            first = int(source[start + CUE + 1])
            assert torch.equal(ids[row, start + 1 : start + CUE + 1], ids[row, first - CUE : first])


def test_a_cycle_can_be_predicted_except_at_jumps():
    ids, labels, _ = cycles(16, 128, generator())
    assert (ids != MARK).all()
    for row in range(16):
        labelled = labels[row, 1:] != -100
        following = {
            (int(one), int(other))
            for one, other in zip(ids[row, :-1][labelled], ids[row, 1:][labelled], strict=True)
        }
        assert len(following) == len({one for one, _ in following}), "one token after each"
    assert (labels[:, 32:] == -100).float().mean() == pytest.approx(JUMP, abs=0.03)


def test_segments_fill_a_sample():
    for length in (16, 128, 307):
        assert int(segment_lengths(length).sum()) == length


def test_p_value_counts_deals():
    assert p_value([1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]) == pytest.approx(2 / 252)
    assert p_value([1.0, 2.0], [1.0, 2.0]) == 1
    # Deals of 0 1 | 2 3: means differ by 2 twice, by 1 twice, by 0 twice.
    assert p_value([0.0, 2.0], [1.0, 3.0]) == pytest.approx(4 / 6)


def test_interval_of_student():
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert half == pytest.approx(2.776 * (2.5 / 5) ** 0.5)


def test_every_method_trains_on_the_same_number_of_tokens():
    methods = METHODS + ABLATION + DECODING + ROPE
    trained = [method for method in methods if method.length is not None]
    tokens = [study._tokens(method) for method in trained]
    assert max(tokens) - min(tokens) <= 0.001 * max(tokens)
    assert {method.length for method in trained if method.reach > 1} == {SHORT}


def test_a_study_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "PRETRAINING_STEPS", 1)
    monkeypatch.setattr(tiny, "EXTENSION_STEPS", 1)
    monkeypatch.setattr(study, "LENGTHS", (32, 64))
    monkeypatch.setattr(study, "SAMPLES", 2)
    base = tmp_path / "base"
    tiny.untrained(0).save_pretrained(base)
    chosen = [
        method
        for method in METHODS
        if method.name in ("nothing", "PoSE", "PoSE + reach + temperature")
    ]
    rows = [study.result(base, method, seed) for method, seed in study.missing([], chosen, 2)]
    assert study.missing(rows[:4], chosen, 2) == study.missing([], chosen, 2)[4:]
    assert study.missing(rows, chosen, 2) == []
    again = study.result(base, chosen[1], 0)
    assert again["accuracy"] == rows[1]["accuracy"], "a run depends on its method and seed alone"
    assert table(rows).count("\n") == 1 + len(chosen)
    assert verdict(rows).count("\n") == len(chosen)
    draw(rows, tmp_path / "proof.png")
    assert (tmp_path / "proof.png").stat().st_size > 10_000


def test_factors_are_searched_once_and_each_plan_stretches_rope(tmp_path, monkeypatch):
    monkeypatch.setattr(factors, "EVOLUTION", Evolution(population=4, iterations=0))
    monkeypatch.setattr(factors, "SAMPLES", 1)
    monkeypatch.setattr(factors, "HELD_OUT", 1)
    base = tmp_path / "base"
    tiny.untrained(0).save_pretrained(base)
    found = read_rope_factors(find_factors(base))
    assert found.target_length == TARGET
    assert found.original_max_position_embeddings == WINDOW
    content = json.loads((tmp_path / FACTORS).read_text())
    assert content["held_out_loss"]["longrope"]["own"] > 0
    assert f"{content['search']['trials']} candidates in" in search_table(content)
    monkeypatch.delattr(factors, "search_factors")
    assert find_factors(base) == tmp_path / FACTORS

    monkeypatch.setattr(tiny, "EXTENSION_STEPS", 0)
    pretrained = tiny.LlamaForCausalLM.from_pretrained(base)
    frequencies = set()
    for method in ROPE:
        model = tiny.extended(pretrained, method, 0, found)
        assert model.config.max_position_embeddings == TARGET
        inv_freq, scaling = rope_frequencies(model.config)
        frequencies.add((tuple(inv_freq.tolist()), scaling))
    assert len(frequencies) == len(ROPE) / 2
    assert pretrained.config.rope_parameters["rope_type"] == "default"


def test_plans_are_a_study_of_their_own(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["proof", "--rope_scaling", "--ablation"])
    with pytest.raises(SystemExit):
        main()
    assert "--rope_scaling is a study of its own; leave out" in capsys.readouterr().err


def test_decoding_is_in_force_while_it_is_measured(tmp_path, monkeypatch):
    seen = []

    def measured(model, length, seed, samples):
        seen.append(isinstance(model, ContrastedForCausalLM))
        return torch.zeros(2), torch.zeros(2)

    monkeypatch.setattr(study, "measured", measured)
    monkeypatch.setattr(tiny, "EXTENSION_STEPS", 0)
    tiny.untrained(0).save_pretrained(tmp_path / "base")
    for method in (METHODS[0], next(method for method in DECODING if method.decoding == "pcd")):
        study.result(tmp_path / "base", method, 0)
    assert seen == [False] * len(study.LENGTHS) + [True] * len(study.LENGTHS)


def test_the_base_model_is_pretrained_once(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "pretrained", tiny.untrained)
    folder = study.base_model(tmp_path / "base")
    assert (folder / "model.safetensors").exists()
    monkeypatch.delattr(study, "pretrained")
    assert study.base_model(folder) == folder


def test_one_seed_has_no_interval(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["proof", "--seeds", "1"])
    with pytest.raises(SystemExit):
        main()
    assert "--seeds is 1; it must be from 2, for intervals, to 10" in capsys.readouterr().err

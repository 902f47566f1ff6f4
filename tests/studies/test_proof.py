"""The study of docs/proof.md: its task, its statistics, and that it can be interrupted."""

import json
from pathlib import Path

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
from studies.proof.methods import (
    COMPARED,
    DECODING,
    GRID,
    OTHERS,
    PAIRS,
    POSE,
    POWER,
    REACH,
    ROPE,
    SHORT,
    TARGET,
    THIRD,
    VIEWS,
    WINDOW,
    spread,
)
from studies.proof.report import (
    differences,
    draw,
    holm,
    interval,
    p_value,
    search_table,
    table,
    verdict,
)
from studies.proof.selection import scores
from studies.proof.task import (
    CUE,
    JUMP,
    MARK,
    SPAN,
    STATEMENT,
    TASKS,
    cycles,
    mixed,
    quotes,
    segment_lengths,
    variables,
)


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


@pytest.mark.parametrize("length", [32, 128, 307])
def test_a_variable_has_its_latest_value(length):
    ids, labels, depth = variables(4, length, generator())
    rest = length % STATEMENT
    for row in range(4):
        assert (ids[row, :rest] == MARK).all()
        statements = ids[row, rest:].view(-1, STATEMENT).tolist()
        told = (labels[row, rest:].view(-1, STATEMENT)[:, -1] != -100).tolist()
        assert sum(told) == (labels[row] != -100).sum()
        held: dict[tuple[int, int], tuple[int, int]] = {}
        for number, ((mark, *name, value), is_told) in enumerate(
            zip(statements, told, strict=True)
        ):
            assert mark == MARK
            if is_told:
                latest, where = held.pop(tuple(name))  # each is asked for once
                assert latest == value
                place = rest + STATEMENT * number + STATEMENT - 1
                assert depth[row, place] == pytest.approx(where / told.index(True))
            else:
                held[tuple(name)] = value, number
        assert not held, "each variable is asked for"
    assert len(statements) - sum(told) > sum(told), "some are set more than once"


def test_tasks_take_turns_at_what_does_not_divide():
    for batch in (1, 3, 10):
        for turn in range(2):
            sample = mixed(batch, 128, turn, generator())
            assert len(sample.input_ids) == batch
        drawn = [mixed(batch, 128, turn, generator()).labels.ne(-100).sum() for turn in range(2)]
        assert (drawn[0] == drawn[1]) == (batch % 2 == 0)


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


def test_p_value_is_that_of_a_paired_t_test():
    """Tables of Student's t: 2.776 is the 97.5 % point of 4 degrees of freedom, 2.571 that of 5."""
    for point, count in ((2.776, 5), (2.571, 6), (12.71, 2), (4.303, 3)):
        spread = [-1.0, 1.0] * (count // 2) + [0.0] * (count % 2)
        error = (sum(x * x for x in spread) / (count - 1) / count) ** 0.5
        shifted = [x + point * error for x in spread]
        assert p_value(shifted) == pytest.approx(0.05, abs=2e-4)
    assert p_value([1.0, -1.0]) == pytest.approx(1)
    assert p_value([0.0, 0.0]) == 1
    assert p_value([0.1, 0.1]) == 0


def test_p_values_are_corrected_by_holm():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def rows_of(**methods: list[float]) -> list[dict]:
    return [
        {"method": name, "seed": seed, "accuracy": {"quotes": {"1024": value}}}
        for name, values in methods.items()
        for seed, value in enumerate(values)
    ]


def test_differences_are_of_the_same_seeds():
    found = differences(
        rows_of(one=[0.5, 0.7, 0.6], other=[0.4, 0.6, 0.51]), [("other", "one")], ["1024"]
    )
    difference = found["other", "one", "quotes", "1024"]
    assert difference.mean == pytest.approx(-0.29 / 3)
    assert difference.half < 0.02, "though the runs themselves differ"
    assert difference.p == difference.p_corrected == p_value([-0.1, -0.1, -0.09])
    assert "| other minus one | -9.7 ± 1.4 | 0.001 |" in verdict(found)


def test_the_settings_are_those_that_were_selected():
    results = Path(__file__).parents[2] / "studies" / "results" / "proof_selection.json"
    rows = json.loads(results.read_text())
    assert {row["method"] for row in rows} == {method.name for method in GRID}
    assert next(iter(scores(rows))) == f"reach {REACH:g}, power {POWER:g}"


def test_candidates_are_judged_by_quotes_at_the_target_and_twice_that():
    rows = [
        {"method": name, "accuracy": {"quotes": {str(TARGET): at, str(2 * TARGET): beyond}}}
        for name, at, beyond in [("a", 0.9, 0.5), ("a", 0.7, 0.5), ("b", 0.8, 0.8)]
    ]
    assert scores(rows) == {"b": pytest.approx(0.8), "a": pytest.approx(0.65)}


def test_interval_of_student():
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert half == pytest.approx(2.776 * (2.5 / 5) ** 0.5)


def test_what_is_compared_costs_the_same():
    methods = [*COMPARED, *OTHERS, *DECODING, *ROPE, *GRID]
    trained = {method.name: method for method in methods if method.length is not None}
    tokens = {
        name: study._tokens(method)
        for name, method in trained.items()
        if method.share == 1 and not method.views
    }
    assert max(tokens.values()) - min(tokens.values()) <= 0.001 * max(tokens.values())
    assert study._tokens(trained[POSE + THIRD]) == pytest.approx(
        SHORT / TARGET * tokens[POSE], rel=0.002
    )
    assert {name for pair in PAIRS for name in pair} <= trained.keys()
    model = tiny.untrained(0)
    views = study._flop(model, trained[POSE + VIEWS])
    assert views == pytest.approx(study._flop(model, trained[POSE]), rel=0.01)
    assert {method.length for method in trained.values() if method.reach > 1} == {SHORT}


def test_a_study_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "EXTENSION_STEPS", 1)
    monkeypatch.setattr(study, "LENGTHS", (32, 64))
    monkeypatch.setattr(study, "SAMPLES", 2)
    base = tmp_path / "base-0" / "model"
    tiny.untrained(0).save_pretrained(base)
    names = ("nothing", "PoSE", POSE)
    chosen = [method for method in (*OTHERS, *COMPARED) if method.name in names]
    runs = study.missing([], chosen, range(2), base)
    rows = [study.result(base, method, seed) for method, seed in runs]
    assert study.missing(rows[:4], chosen, range(2), base) == runs[4:]
    assert study.missing(rows, chosen, range(2), base) == []
    assert study.missing(rows, chosen, range(2), tmp_path / "base-1" / "model") == runs
    again = study.result(base, chosen[1], 0)
    assert again["accuracy"] == rows[1]["accuracy"], "a run depends on its method and seed alone"
    assert table(rows, "variables").count("\n") == 1 + len(chosen)
    found = differences(rows, [(POSE, "nothing"), (POSE, "PoSE")], ["32", "64"])
    assert verdict(found).count("\n") == 3
    draw(rows, tmp_path / "proof.png")
    assert (tmp_path / "proof.png").stat().st_size > 10_000


def test_a_second_view_teaches(monkeypatch):
    """From the same samples another model comes out, in fewer steps."""
    monkeypatch.setattr(tiny, "EXTENSION_STEPS", 4)
    method = spread("PoSE", views=1)
    assert tiny.steps_of(method) == 3
    base = tiny.untrained(0)
    taught = tiny.extended(base, method, 0)
    untaught = tiny.extended(base, spread("PoSE", views=1e-9), 0)
    difference = taught.lm_head.weight - untaught.lm_head.weight
    assert difference.abs().max() > 1e-5


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
    monkeypatch.setattr("sys.argv", ["proof", "--rope_scaling", "--decoding"])
    with pytest.raises(SystemExit):
        main()
    assert "--rope_scaling is a study of its own; leave out" in capsys.readouterr().err


def test_decoding_is_in_force_while_it_is_measured(tmp_path, monkeypatch):
    seen = []

    def measured(model, task, length, seed, samples):
        seen.append(isinstance(model, ContrastedForCausalLM))
        return torch.zeros(2), torch.zeros(2)

    monkeypatch.setattr(study, "measured", measured)
    monkeypatch.setattr(tiny, "EXTENSION_STEPS", 0)
    tiny.untrained(0).save_pretrained(tmp_path / "base")
    for method in (OTHERS[0], next(method for method in DECODING if method.decoding == "pcd")):
        study.result(tmp_path / "base", method, 0)
    count = len(study.LENGTHS) * len(TASKS)
    assert seen == [False] * count + [True] * count


def test_the_base_model_is_pretrained_once(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "pretrained", tiny.untrained)
    folder = study.base_model(tmp_path, 3)
    assert (folder / "model.safetensors").exists()
    assert folder.parent.name == f"base-3-{tiny.version()}"
    monkeypatch.delattr(study, "pretrained")
    assert study.base_model(tmp_path, 3) == folder
    monkeypatch.setattr(tiny, "PRETRAINING_STEPS", (1, 1))
    with pytest.raises(NameError):
        study.base_model(tmp_path, 3)  # other settings make another model


def test_one_seed_has_no_interval(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["proof", "--seeds", "1"])
    with pytest.raises(SystemExit):
        main()
    assert "--seeds is 1; it must be from 2, for intervals, to 10" in capsys.readouterr().err

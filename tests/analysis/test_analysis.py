"""Whole analyses of tiny models, against their definition."""

import itertools
import json
import runpy
import shutil
import sys
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lrk import atomic, settings_folder
from lrk.analysis import AnalysisArguments, analyze, computed
from lrk.analysis import analysis as module
from lrk.analysis import folder as module_of_folder
from lrk.data.command import main
from lrk.data.prepare import Preparation, prepare
from lrk.eval import longppl
from lrk.eval.longppl import find_key_tokens
from lrk.lock import locked
from lrk.recipe import Samples, load_documents, tokenize
from lrk.recipe.impactful import read_impactful
from tests.fuzz.outcome import RIGHT, of_call

OUTPUTS = ("impactful.json", "token_types.csv", "token_types.png")


@pytest.fixture
def samples(tokenizer, corpus):
    """(10, 40): every sample that is analyzed."""
    found = Samples(tokenize(load_documents([str(corpus)]), tokenizer), 40, pack=False)
    assert len(found) > 10
    return torch.stack([found[i * len(found) // 10]["input_ids"] for i in range(10)])


def contents(folder) -> dict[str, bytes]:
    return {name: (Path(folder) / name).read_bytes() for name in OUTPUTS}


def test_impactful_tokens_are_the_definition(arguments, models, samples, tokenizer):
    found = analyze(arguments())
    scores = []
    for folder in models:
        model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
        with torch.no_grad():
            logits = model(samples).logits[:, :-1]
        scores.append(logits.gather(-1, samples[:, 1:, None])[..., 0])
    delta, ids = scores[1] - scores[0], samples[:, 1:]
    top = torch.zeros_like(ids, dtype=torch.bool)
    top.scatter_(0, delta.topk(2, dim=0).indices, True)

    assert sorted(found.types.token_ids.tolist()) == ids.unique().tolist()
    for token, count, top_count, gain, lift in zip(
        found.types.token_ids, found.types.count, found.types.top_count, found.types.gain,
        found.types.lift, strict=True,
    ):  # fmt: skip
        is_it = ids == int(token)
        assert count == is_it.sum()
        assert top_count == (is_it & top).sum()
        assert gain == pytest.approx(delta[is_it].sum().item(), abs=1e-3)
        assert lift == pytest.approx((top_count / top.sum()) / (count / ids.numel()))
    chosen = (found.types.lift_low > 0.5) & (found.types.count >= 5)
    table = read_impactful(found.folder / "impactful.json", tokenizer)
    assert table.token_ids.tolist() == sorted(found.types.token_ids[chosen].tolist())
    assert table.details["weights"].keys() == {"model", "extended"}
    assert table.details["tokens"] == 390
    assert table.details["top_tokens"] == 78
    assert 0 < table.details["kept_share"] <= 1
    assert (found.folder / "token_types.png").stat().st_size > 0
    assert "10 samples of 40 tokens; top 20% by gain: 78 of 390" in found.report()


def test_an_analysis_that_is_killed_goes_on_and_ends_alike(arguments, monkeypatch, tmp_path):
    whole = contents(analyze(arguments(output_dir=str(tmp_path / "whole"))).folder)
    score, calls = computed.token_logits, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return score(*args)

    monkeypatch.setattr(computed, "token_logits", killed)
    with pytest.raises(KeyboardInterrupt):
        analyze(arguments())
    with (tmp_path / "analysis" / "rows" / "extended").open("ab") as file:
        file.write(b"half a row")
    calls[:] = calls[:1]
    again = contents(analyze(arguments()).folder)
    assert len(calls) == 1 + 7, "of 20 rows 13 were there"
    # The paths of the two folders are not in the outputs.
    assert again == whole


def test_other_thresholds_compute_nothing_again(arguments, monkeypatch):
    first = analyze(arguments())
    monkeypatch.setattr(computed, "load_model", lambda *_: pytest.fail("a model was loaded"))
    second = analyze(arguments(top_share=0.4, min_lift=0.4))
    assert second.summary["top_tokens"] == 2 * first.summary["top_tokens"]


def test_other_settings_over_an_old_analysis_are_refused(arguments):
    analyze(arguments())
    with pytest.raises(ValueError, match=r"other settings \(.*samples was 10 and is 6"):
        analyze(arguments(samples=6))
    assert analyze(arguments(samples=6, overwrite_output_dir=True)).summary["samples"] == 6


def test_an_overwriting_that_is_killed_never_leaves_a_table_of_the_old_model(
    arguments, models, monkeypatch, tmp_path
):
    model = AutoModelForCausalLM.from_pretrained(models[1])
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    other = str(tmp_path / "other")
    shutil.copytree(models[1], other)
    model.save_pretrained(other)
    old = analyze(arguments()).folder
    right = contents(analyze(arguments(extended=other, output_dir=str(tmp_path / "right"))).folder)
    assert right != contents(old)
    for stop in range(len(module_of_folder._NAMES) + 2):  # and the settings
        killed = shutil.copytree(old, tmp_path / f"killed-{stop}")
        calls = itertools.count()

        def remove(path, calls=calls, stop=stop):
            if next(calls) == stop:
                raise KeyboardInterrupt
            return atomic.remove(path)

        monkeypatch.setattr(settings_folder, "remove", remove)
        again = arguments(extended=other, output_dir=str(killed))
        with pytest.raises(KeyboardInterrupt) if stop < 8 else nullcontext():
            analyze(replace(again, overwrite_output_dir=True))
        outcome = of_call(partial(analyze, again))
        if outcome.kind == RIGHT:
            assert contents(killed) == right
        else:
            assert "with other settings" in outcome.text


def test_what_nobody_can_name_is_refused(arguments):
    folder = analyze(arguments()).folder
    (folder / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"holds impactful.json without settings.json, which says"):
        analyze(arguments())


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"samples": 10}'])
def test_damaged_settings_are_one_sentence(arguments, damage):
    folder = analyze(arguments()).folder
    (folder / "settings.json").write_text(damage)
    with pytest.raises(
        ValueError, match=r"settings.json' is damaged.*: choose another folder or over"
    ):
        analyze(arguments())


def test_two_analyses_in_one_folder(arguments):
    made = arguments()
    with (
        locked(Path(made.output_dir)),
        pytest.raises(ValueError, match="another process is writing to"),
    ):
        analyze(made)


@pytest.mark.parametrize("name", ["parts_of_speech", "overwrite_output_dir"])
def test_text_is_no_truth_value(arguments, name):
    with pytest.raises(ValueError, match=f"{name} is 'false', of type str; it must be bool"):
        arguments(**{name: "false"})


@pytest.mark.parametrize("place", ["file", "file/below", "dangling"])
def test_an_output_dir_that_can_be_none_is_refused_first(arguments, tmp_path, place, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(module, "load_config", lambda *_: pytest.fail("work began"))
    with pytest.raises(ValueError, match=f"output_dir .*{place}"):
        analyze(arguments(output_dir=str(tmp_path / place)))


def test_other_weights_under_an_old_name_are_refused(arguments, monkeypatch):
    made = arguments()
    analyze(made)
    rows = Path(made.output_dir) / "rows" / "extended"
    rows.write_bytes(rows.read_bytes()[: 4 * 40 * 3])
    monkeypatch.setattr(computed, "fingerprint_weights", lambda model: "others")
    with pytest.raises(ValueError, match="has other weights than when the analysis began"):
        analyze(made)


def test_prepared_documents_give_the_same_table(arguments, tokenizer, corpus, tmp_path):
    prepare(Preparation([str(corpus)]), tokenizer, tmp_path / "prepared")
    found = analyze(
        arguments(data=[str(tmp_path / "prepared")], output_dir=str(tmp_path / "of-prepared"))
    )
    plain = analyze(arguments())
    assert (found.folder / "token_types.csv").read_bytes() == (
        plain.folder / "token_types.csv"
    ).read_bytes()


def test_samples_can_be_spread_over_a_longer_window(arguments, models, samples):
    spread = analyze(arguments(target_length=128))
    plain = analyze(arguments(output_dir=spread.folder.parent / "plain"))
    assert not np.allclose(np.sort(spread.types.gain), np.sort(plain.types.gain))


def test_key_tokens_without_an_extended_model(arguments, models, samples, monkeypatch):
    monkeypatch.setattr(longppl, "ALPHA", 0.5)  # random weights know little
    monkeypatch.setattr(longppl, "BETA", 6.0)
    made = arguments(extended=None, short_context=8, short_stride=4, min_lift=0.01, min_count=1)
    found = analyze(made)
    model = AutoModelForCausalLM.from_pretrained(models[0]).eval()
    keys = torch.stack([find_key_tokens(model, row, None, 8, 4) for row in samples])
    assert found.summary["top_tokens"] == keys.sum() > 0
    assert found.summary["tokens"] == 10 * (40 - 12)
    for token, top_count in zip(found.types.token_ids, found.types.top_count, strict=True):
        assert top_count == (keys & (samples == int(token))).sum()


def test_the_extended_model_is_made_by_a_short_stage(arguments, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("Nobody crossed it before winter. The pass was closed. " * 40)
    made = arguments(
        extended=None, extend_steps=2, extend_data=[str(other)], extend_length=32,
        extend_learning_rate=1e-2,
    )  # fmt: skip
    found = analyze(made)
    config = json.loads((found.folder / "extended" / "config.json").read_text())
    assert config["max_position_embeddings"] == 128
    changed = (found.folder / "extended" / "model.safetensors").stat().st_mtime_ns
    analyze(made)
    assert (found.folder / "extended" / "model.safetensors").stat().st_mtime_ns == changed


def test_parts_of_speech_are_counted(arguments, monkeypatch):
    monkeypatch.setattr(module, "Tagger", lambda *_: lambda ids: np.array(ids) % 5)
    made = arguments()
    made.parts_of_speech = True  # after the check that spaCy is there
    found = analyze(made)
    parts = found.summary["parts_of_speech"]
    assert sum(row["share"] for row in parts.values()) == pytest.approx(1)
    assert sum(row["top_share"] for row in parts.values()) == pytest.approx(1)
    assert (found.folder / "parts_of_speech.png").stat().st_size > 0


def test_parts_of_speech_are_left_out_with_a_note_without_spacy(arguments, options):
    del options["parts_of_speech"]
    found = analyze(arguments(spacy_model="no_such_model"))
    assert "parts_of_speech" not in found.summary
    assert not (found.folder / "parts_of_speech.png").exists()
    assert "parts of speech are not counted: " in found.report()
    made = arguments(parts_of_speech=False, overwrite_output_dir=True)
    assert "parts of speech" not in analyze(made).report()


def test_the_command(options, capsys):
    words = [
        f"--{key.replace('_', '-')}={value}" for key, value in options.items() if key != "data"
    ]
    assert main(["analyze", *words, "--data", *options["data"]]) == 0
    assert "token types are impactful" in capsys.readouterr().out
    assert main(["analyze", *words, "--data", "/nowhere"]) == 2
    assert "data source '/nowhere' does not exist" in capsys.readouterr().err


def test_python_m_lists_every_argument(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["analyze", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("lrk.analysis", run_name="__main__")
    said = capsys.readouterr().out
    assert all(f"--{item.name}" in said for item in fields(AnalysisArguments))
    assert "(default: 0.2)" in said


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": ""}, "model is missing"),
        ({"model": "./nowhere"}, "model './nowhere' does not exist"),
        ({"data": []}, "data is empty"),
        ({"extended": "./nowhere"}, "extended './nowhere' does not exist"),
        ({"samples": 4}, "samples is 4; the top 20% of the tokens at each place needs at least 5"),
        ({"samples": 0}, "samples is 0; it must be at least 1"),
        ({"length": 10_000}, "the longest of 12 documents has"),
        ({"length": 110}, "samples of 110 tokens; the top 20% .* needs more"),
        ({"top_share": 1.0}, "top_share is 1.0; it must be between 0 and 1"),
        ({"min_lift": 0.0}, "min_lift is 0.0; it must be positive"),
        ({"min_lift": 6.0}, "no token type has a lift above min_lift 6.0"),
        ({"target_length": 39}, "target_length is 39, shorter than length 40"),
        ({"position_method": "longrecip"}, "position_method 'longrecip' is unknown"),
        ({"dtype": "float8"}, "dtype 'float8' is unknown"),
        ({"extend_steps": 3}, "extended and extend_steps exclude each other"),
        ({"extended": None, "extend_steps": 3}, "extend_data is empty"),
        ({"extend_data": ["x"]}, "extend_data is given without extend_steps"),
        ({"extended": None, "target_length": 128}, "target_length is 128 without extended"),
        ({"extended": None}, "length is 40; without extended it must be more than short_context"),
        ({"parts_of_speech": True, "spacy_model": "no_such_model"}, 'pip install "spacy>=.* tags'),
    ],
)  # fmt: skip
def test_bad_input(arguments, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        analyze(arguments(**changes))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vocab_size": 301}, "has a vocabulary of 301 tokens, model .* of 300"),
        ({"max_position_embeddings": 64}, "has a window of 64 tokens, no longer than"),
    ],
)
def test_models_that_do_not_belong_together(arguments, models, change, sentence, tmp_path):
    config = json.loads((models[1] / "config.json").read_text())
    for file in models[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=sentence):
        analyze(arguments(extended=str(tmp_path)))


def test_logits_that_are_not_finite_are_refused(arguments, models, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(models[1])
    model.model.layers[1].mlp.down_proj.weight.data.fill_(torch.inf)
    model.save_pretrained(tmp_path / "broken")
    for file in models[1].glob("tokenizer*"):
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="logits"):
        analyze(arguments(extended=str(tmp_path / "broken")))

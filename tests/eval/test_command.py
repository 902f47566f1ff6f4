"""`lrk-eval` as users meet it: results, resuming, and one sentence for each kind of bad input."""

import contextlib
import io
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from lrk.eval import cells as cells_module
from lrk.eval import evaluation as evaluation_module
from lrk.eval import pretrained as pretrained_module
from lrk.eval.cells import cells_of
from lrk.eval.command import main
from lrk.eval.parser import parse
from lrk.lock import locked
from lrk.share import Share, at_work
from studies.ranks import run_ranks


@pytest.fixture(autouse=True)
def no_word_lists(monkeypatch, words):
    monkeypatch.setattr("lrk.eval.words.is_installed", lambda: True)
    monkeypatch.setattr("lrk.eval.words.ruler_words", lambda: words)


@pytest.fixture
def options(model_folder, tmp_path, tokenizer) -> dict:
    (tmp_path / "long.txt").write_text("The grass is green. The sky is blue. " * 40)
    (tmp_path / "short.txt").write_text("Too short.")
    return {
        "model": str(model_folder),
        "output_dir": str(tmp_path / "results"),
        "tasks": ["passkey", "niah_multikey_3", "niah_grid"],
        "lengths": [450, 512],
        "trials": 2,
        "depths": [0, 100],
        "device": "cpu",
    }


@pytest.fixture
def config(options, tmp_path):
    def write(**changes) -> str:
        path = tmp_path / "config.yaml"
        values = {key: value for key, value in (options | changes).items() if value is not None}
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return write


@pytest.fixture
def short_answers(monkeypatch):
    """Four tokens say as much of the command as 128 do."""
    answers = evaluation_module.answers

    def first_four(model, tokenizer, prompts, max_new_tokens):
        return answers(model, tokenizer, prompts, 4)

    monkeypatch.setattr(evaluation_module, "answers", first_four)


@pytest.mark.usefixtures("short_answers")
def test_a_run_leaves_cells_a_table_and_pictures(config, options, capsys):
    assert main([config(batch_size=2)]) == 0
    folder = Path(options["output_dir"])
    names = {path.name for path in (folder / "cells").iterdir()}
    assert names == {
        f"{name}-{length}{depth}.json"
        for length in (450, 512)
        for name, depth in [
            ("passkey", ""),
            ("niah_multikey_3", ""),
            ("niah_grid", "-depth0"),
            ("niah_grid", "-depth100"),
        ]
    }
    cell = json.loads((folder / "cells" / "passkey-450.json").read_text())
    assert set(cell["settings"]) >= {"model_config", "weights", "tokenizer", "dtype", "seed"}
    assert set(cell["environment"]["packages"]) >= {"torch", "transformers", "lrk"}
    trials = cell["result"]["trials"]
    assert [trial["trial"] for trial in trials] == [0, 1]
    assert all(trial["tokens"] <= 440 and len(trial["references"]) == 1 for trial in trials)
    results = json.loads((folder / "results.json").read_text())
    assert results["arguments"]["lengths"] == [450, 512]
    assert set(results["scores"]["niah_grid"]) == {"450", "512"}
    assert results["ruler"]["tasks"] == ["niah_multikey_3"]
    table = (folder / "results.md").read_text()
    assert "| task | 450 | 512 |" in table
    assert "Mean of 1 of RULER's 13 tasks" in table
    assert table in capsys.readouterr().out
    for picture in ("passkey.png", "niah_grid.png", "niah_multikey_3.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert parse([str(folder / "config.yaml")]).to_dict() == results["arguments"]


@pytest.mark.usefixtures("short_answers")
def test_the_grid_can_have_trials_of_its_own(config, options):
    assert main([config(tasks=["passkey", "niah_grid"], lengths=[450], grid_trials=1)]) == 0
    cells = Path(options["output_dir"]) / "cells"
    counts = {
        file.stem: len(json.loads(file.read_text())["result"]["trials"]) for file in cells.iterdir()
    }
    assert counts == {"passkey-450": 2, "niah_grid-450-depth0": 1, "niah_grid-450-depth100": 1}


def test_answers_can_be_kept_short_which_leaves_more_haystack(config, options, capsys):
    chosen = {"tasks": ["niah_multikey_3"], "lengths": [512]}
    assert main([config(**chosen, max_new_tokens=4)]) == 0
    cell = Path(options["output_dir"]) / "cells" / "niah_multikey_3-512.json"
    found = json.loads(cell.read_text())
    assert found["settings"]["max_new_tokens"] == 4
    assert all(512 - 64 < trial["tokens"] <= 508 for trial in found["result"]["trials"])
    assert main([config(**chosen, max_new_tokens=5)]) == 2
    assert "max_new_tokens was 4 and is 5" in capsys.readouterr().err
    assert main([config(**chosen, max_new_tokens=0)]) == 2
    assert "max_new_tokens is 0; it must be at least 1" in capsys.readouterr().err


@pytest.mark.usefixtures("short_answers")
def test_finished_cells_are_not_repeated_and_others_are_added(config, options, monkeypatch):
    assert main([config(tasks=["passkey"], lengths=[450])]) == 0
    folder = Path(options["output_dir"])
    old = (folder / "cells" / "passkey-450.json").read_bytes()
    (folder / "cells" / ".partial-passkey-512.json").write_text("{")
    asked = []
    answers = evaluation_module.answers

    def counted(model, tokenizer, prompts, max_new_tokens):
        asked.append(len(prompts))
        return answers(model, tokenizer, prompts, max_new_tokens)

    monkeypatch.setattr(evaluation_module, "answers", counted)
    assert main([config(tasks=["passkey"], lengths=[450, 512], batch_size=2)]) == 0
    assert asked == [2]
    assert (folder / "cells" / "passkey-450.json").read_bytes() == old
    assert not list(folder.rglob(".partial*"))
    assert set(json.loads((folder / "results.json").read_text())["scores"]["passkey"]) == {
        "450",
        "512",
    }


@pytest.mark.usefixtures("short_answers")
def test_a_cell_that_was_changed_is_refused_with_its_name(config, options, capsys):
    chosen = {"tasks": ["passkey"], "lengths": [450]}
    assert main([config(**chosen)]) == 0
    file = Path(options["output_dir"]) / "cells" / "passkey-450.json"
    whole = file.read_text()
    for damaged in (whole.replace('"score": 0', '"score": 1'), whole[:-40], "[]", "{}", ""):
        assert damaged != whole
        file.write_text(damaged)
        capsys.readouterr()
        assert main([config(**chosen)]) == 2
        assert f"lrk-eval: {str(file)!r} is damaged" in capsys.readouterr().err
    file.unlink()
    assert main([config(**chosen)]) == 0
    assert json.loads(file.read_text())["result"] == json.loads(whole)["result"]


@pytest.mark.usefixtures("short_answers")
def test_an_interrupted_evaluation_says_how_to_go_on(config, options, capsys, monkeypatch):
    answers, calls = evaluation_module.answers, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answers(*arguments)

    monkeypatch.setattr(evaluation_module, "answers", interrupted)
    chosen = {"tasks": ["passkey"]}
    assert main([config(**chosen)]) == 130
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "lrk-eval: interrupted; run it again to go on: finished cells are not repeated"
    cells = Path(options["output_dir"]) / "cells"
    assert [file.name for file in cells.iterdir()] == ["passkey-450.json"]
    assert main([config(**chosen)]) == 0
    assert len(calls) == 5, "of 4 trials the 2 of the first cell were there"


@pytest.mark.usefixtures("short_answers")
def test_another_process_in_the_folder_shows_before_the_weights_are_loaded(
    config, options, capsys, monkeypatch
):
    monkeypatch.setattr(evaluation_module, "load_model", lambda _: pytest.fail("weights were read"))
    with locked(Path(options["output_dir"])):
        assert main([config()]) == 2
    assert "another process is writing to" in capsys.readouterr().err


def cells_in(folder: Path) -> dict[str, dict]:
    """What each cell holds, less what no two runs share."""
    found = {file.name: json.loads(file.read_text()) for file in folder.glob("cells/[!.]*.json")}
    for cell in found.values():
        for name in ("seconds", "peak_memory_gib", "sha256", "environment"):
            del cell[name]
    return found


@pytest.mark.usefixtures("short_answers")
def test_two_shards_are_one_run_cell_by_cell(config, options, tmp_path, capsys):
    assert main([config(output_dir=str(tmp_path / "whole"))]) == 0
    whole, folder = cells_in(tmp_path / "whole"), Path(options["output_dir"])
    capsys.readouterr()
    assert main([config(), "--shard", "1/2"]) == 0
    assert "cells of 1/2 are there, 4 of others are missing" in capsys.readouterr().out
    assert not (folder / "results.json").exists()
    second = set(cells_in(folder))
    assert main([config(), "--shard=0/2"]) == 0
    assert len(second) == 4, "of 8, of which half are twice as dear"
    assert len([name for name in second if "-512" in name]) == 2
    assert cells_in(folder) == whole
    out = capsys.readouterr().out
    assert out.strip() == (tmp_path / "whole" / "results.md").read_text().strip()
    found = [json.loads((at / "results.json").read_text()) for at in (folder, tmp_path / "whole")]
    assert found[0]["scores"] == found[1]["scores"]
    assert {file.name for file in folder.glob("[!.]*")} == {
        file.name for file in (tmp_path / "whole").glob("[!.]*")
    }
    assert "shard:" not in (folder / "config.yaml").read_text()


@pytest.mark.usefixtures("short_answers")
def test_shards_in_folders_of_their_own_are_put_together(config, tmp_path, monkeypatch):
    for index in range(2):
        folder = tmp_path / f"part{index}"
        assert main([config(output_dir=str(folder), shard=f"{index}/2")]) == 0
        assert not (folder / "results.md").exists()
        shutil.copytree(folder / "cells", tmp_path / "both" / "cells", dirs_exist_ok=True)
    monkeypatch.setattr(evaluation_module, "answers", lambda *_: pytest.fail("a cell was repeated"))
    assert main([config(output_dir=str(tmp_path / "both"))]) == 0
    assert len(cells_in(tmp_path / "both")) == 8
    assert (tmp_path / "both" / "niah_grid.png").exists()


@pytest.mark.usefixtures("short_answers")
def test_a_killed_shard_goes_on_and_leaves_the_others_alone(config, options, monkeypatch):
    answers, calls = evaluation_module.answers, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answers(*arguments)

    cells = Path(options["output_dir"]) / "cells"
    cells.mkdir(parents=True)
    with monkeypatch.context() as patched:
        patched.setattr(evaluation_module, "answers", interrupted)
        assert main([config(), "--shard", "0/2"]) == 130
    (finished,) = cells.iterdir()
    written = finished.stat().st_mtime_ns
    names = {f"{cell.name}.json" for cell in cells_of(parse([config()]))}
    for name in names:
        (cells / f".partial-00000000-{name}").touch()
    assert main([config(), "--shard", "0/2"]) == 0
    assert finished.stat().st_mtime_ns == written
    left = {file.name.split("-", 2)[2] for file in cells.glob(".partial-*")}
    assert left == names - set(cells_in(cells.parent)), "others may be writing theirs"
    assert len(left) == 4


@pytest.mark.usefixtures("short_answers")
def test_shards_of_two_models_at_a_time_are_not_one_result(
    config, options, model_folder, tmp_path, capsys, monkeypatch
):
    """Both begin before the other has written a cell, so that only the end shows it."""
    other = shutil.copytree(model_folder, tmp_path / "trained")
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(other)
    answers, ready = evaluation_module.answers, []

    def answers_late(*arguments):
        if not ready:
            ready.append(True)
            assert main([config(model=str(other), shard="0/2")]) == 0
        return answers(*arguments)

    monkeypatch.setattr(evaluation_module, "answers", answers_late)
    assert main([config(shard="1/2")]) == 2
    assert "weights was" in capsys.readouterr().err
    assert not (Path(options["output_dir"]) / "results.json").exists()


def test_a_shard_without_cells_reads_no_weights(config, capsys, monkeypatch):
    monkeypatch.setattr(evaluation_module, "load_model", lambda _: pytest.fail("weights were read"))
    assert main([config(tasks=["passkey"], shard="2/3")]) == 0
    assert "the 0 cells of 2/3 are there, 2 of others are missing" in capsys.readouterr().out


@pytest.mark.usefixtures("short_answers")
def test_a_shard_without_cells_says_that_all_are_there(config, options, capsys):
    chosen = {"tasks": ["passkey"], "lengths": [450]}
    said = []
    for shard in ("1/3", "0/3", "1/3"):
        assert main([config(**chosen, shard=shard)]) == 0
        said.append(capsys.readouterr().out)
    assert "the 0 cells of 1/3 are there, 1 of others are missing: the job that finds" in said[0]
    assert "| passkey |" in said[1]
    assert said[2].strip() == (
        f"{options['output_dir']}: all cells are there: the job that finished the last one writes "
        "the results, or the same command without shard does"
    )


@pytest.mark.parametrize("shard", ["0/2", "1/2"])
@pytest.mark.parametrize("words", [[], ["--dry_run"]])
def test_a_length_too_short_is_refused_by_all_shards(config, capsys, monkeypatch, shard, words):
    monkeypatch.setattr(evaluation_module, "load_model", lambda _: pytest.fail("weights were read"))
    assert main([config(tasks=["passkey"], lengths=[60, 450], shard=shard), *words]) == 2
    assert "length 60 is too short for task passkey" in capsys.readouterr().err


@pytest.mark.parametrize("shard", ["0/2", "1/2"])
def test_words_that_run_out_are_refused_by_all_shards(config, capsys, shard):
    assert main([config(tasks=["passkey", "cwe"], lengths=[32_768], shard=shard)]) == 2
    assert "wonderwords has 480 different words" in capsys.readouterr().err


@pytest.mark.usefixtures("short_answers")
def test_a_dry_run_in_any_shard_refuses_a_damaged_cell(config, options, capsys):
    chosen = {"tasks": ["passkey"], "lengths": [450, 512]}
    assert main([config(**chosen)]) == 0
    file = Path(options["output_dir"]) / "cells" / "passkey-450.json"
    file.write_text(file.read_text().replace('"score": 0', '"score": 1'))
    for shard in ("0/2", "1/2"):
        assert main([config(**chosen, shard=shard), "--dry_run"]) == 2
        assert f"{str(file)!r} is damaged" in capsys.readouterr().err


@pytest.mark.usefixtures("short_answers")
def test_one_process_a_shard(config, options, capsys, monkeypatch):
    monkeypatch.setattr(evaluation_module, "load_model", lambda _: pytest.fail("weights were read"))
    folder = Path(options["output_dir"])
    for held, asked in ((Share(0, 2), "0/2"), (Share(0, 2), "0/3"), (Share(), "0/2")):
        with at_work(folder, held):
            assert main([config(shard=asked)]) == 2
        assert "another process is writing to" in capsys.readouterr().err
    with at_work(folder, Share(0, 2)):
        assert main([config()]) == 2


@pytest.mark.usefixtures("short_answers")
def test_a_model_in_several_places_says_the_same(config, tmp_path, monkeypatch):
    """`auto` finds one place on this machine; accelerate's hooks are the same for GPUs."""
    (tmp_path / "longer.txt").write_text("The grass is green. The sky is blue. " * 80)
    chosen = {
        "tasks": ["passkey", "perplexity", "longppl"],
        "lengths": [450],
        "data": [str(tmp_path / "longer.txt")],
        "stride": 64,
        "short_context": 64,
        "short_stride": 32,
    }
    assert main([config(**chosen, output_dir=str(tmp_path / "plain"))]) == 0
    places = {"model.embed_tokens": "disk", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    load, asked = pretrained_module.load_weights, []

    def spread(*arguments, **options):
        asked.append(options["device_map"])
        options |= {"device_map": places, "offload_folder": str(tmp_path / "offload")}
        model = load(*arguments, **options)
        assert sum(parameter.is_meta for parameter in model.parameters()) > 8
        return model

    chosen |= {"device": None, "device_map": "auto"}
    assert main([config(**chosen, output_dir=str(tmp_path / "auto"))]) == 0
    monkeypatch.setattr(pretrained_module, "load_weights", spread)
    assert main([config(**chosen, output_dir=str(tmp_path / "spread"))]) == 0
    assert asked == ["auto"]
    plain = cells_in(tmp_path / "plain")
    assert len(plain) == 3
    assert cells_in(tmp_path / "auto") == plain
    assert cells_in(tmp_path / "spread") == plain, "bit for bit, and the weights' fingerprint too"
    assert "device_map: auto" in (tmp_path / "spread" / "config.yaml").read_text()


def test_a_device_map_is_for_one_process_on_a_machine(config, capsys, monkeypatch):
    for name, value in (("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert main([config(device=None, device_map="auto")]) == 2
    message = "device_map is 'auto', which takes all accelerators of the machine, and 8 processes"
    assert message in capsys.readouterr().err


def test_each_process_on_a_machine_has_its_own_device(config, monkeypatch):
    monkeypatch.setattr("lrk.eval.arguments.check_device", lambda name: checked.append(name))
    checked: list[str] = []
    assert parse([config(device="cuda")]).own_device == torch.device("cuda")
    for name, value in (("LOCAL_RANK", "3"), ("LOCAL_WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    made = parse([config(device="cuda")])
    assert made.own_device == torch.device("cuda:3")
    assert "cuda:3" in checked
    assert made.to_dict()["device"] == "cuda", "config.yaml is that of all processes"
    assert parse([config(device="cuda:0")]).own_device == torch.device("cuda:0"), "as asked"
    assert parse([config(device="cpu")]).own_device == torch.device("cpu")


def evaluated(words: list[str]) -> tuple[int, str]:
    """In a rank: the status, and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = main(words)
    return status, out.getvalue()


def test_each_rank_of_a_launcher_runs_its_share(config, options, tmp_path):
    chosen = {"tasks": ["niah_grid"], "lengths": [450], "trials": 1, "max_new_tokens": 2}
    assert main([config(**chosen, output_dir=str(tmp_path / "whole"))]) == 0
    results = run_ranks(evaluated, 2, [config(**chosen)])
    assert [status for status, _ in results] == [0, 0]
    table = (tmp_path / "whole" / "results.md").read_text()
    assert table in "".join(out for _, out in results), "who finishes last prints it"
    assert cells_in(Path(options["output_dir"])) == cells_in(tmp_path / "whole")
    assert (Path(options["output_dir"]) / "niah_grid.png").exists()
    printed = [out for _, out in run_ranks(evaluated, 2, [config(**chosen, dry_run=True)])]
    assert "2 cells, 2 finished" in printed[0]
    assert printed[1] == ""


@pytest.mark.usefixtures("short_answers")
@pytest.mark.parametrize("stop", range(9))
def test_an_overwriting_that_is_killed_mixes_nothing(config, options, monkeypatch, stop, tmp_path):
    """Each cell says of what it is, so that what is left of the old model is refused."""
    chosen = {"tasks": ["passkey"], "lengths": [450, 512], "trials": 1}
    assert main([config(**chosen)]) == 0
    remove, calls = cells_module.remove, itertools.count()

    def killed(path):
        if next(calls) == stop:
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr(cells_module, "remove", killed)
    status = main([config(**chosen, seed=1), "--overwrite_output_dir"])
    files = 6  # two cells, results.json, results.md, config.yaml, a picture
    assert status == (130 if stop < files else 0)
    status = main([config(**chosen, seed=1)])
    if status == 0:
        cells = (Path(options["output_dir"]) / "cells").glob("*.json")
        assert {json.loads(file.read_text())["settings"]["seed"] for file in cells} == {1}
    else:
        assert status == 2


@pytest.mark.usefixtures("short_answers")
def test_batches_change_nothing(config, options, tmp_path):
    found = []
    for batch_size in (1, 3):
        folder = tmp_path / f"batch{batch_size}"
        changes = {"tasks": ["passkey"], "lengths": [450], "trials": 3}
        assert main([config(batch_size=batch_size, output_dir=str(folder), **changes)]) == 0
        cell = json.loads((folder / "cells" / "passkey-450.json").read_text())
        found.append(cell["result"]["trials"])
    assert found[0] == found[1]


@pytest.mark.usefixtures("short_answers")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "passkey at 450 tokens with other settings (seed was 42 and is 1)"),
        ({"trials": 3}, "trials was 2 and is 3"),
        ({"patch": False}, "patched was True and is False"),
        ({"tasks": ["fwe"], "seed": 7}, "seed was 42 and is 7"),
    ],
    ids=str,
)
def test_changed_arguments_over_old_results_are_an_error(config, capsys, changes, message):
    start = {"tasks": ["passkey"], "lengths": [450]}
    assert main([config(**start)]) == 0
    capsys.readouterr()
    assert main([config(**start | changes)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().splitlines()[-1].endswith("choose another folder or overwrite_output_dir")
    assert main([config(**start | changes), "--overwrite_output_dir"]) == 0


@pytest.mark.usefixtures("short_answers")
def test_other_weights_under_the_same_name_are_an_error(config, model_folder, tmp_path, capsys):
    folder = tmp_path / "trained"
    folder.mkdir()
    for file in model_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    start = {"tasks": ["passkey"], "lengths": [450], "model": str(folder)}
    assert main([config(**start)]) == 0
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(folder)
    capsys.readouterr()
    assert main([config(**start)]) == 2
    assert "weights was" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["passkey", "perplexity"])
def test_weights_that_are_nan_are_refused(config, model_folder, tmp_path, task, capsys):
    folder = shutil.copytree(model_folder, tmp_path / "nan")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.norm.weight.data[3] = torch.nan
    model.save_pretrained(folder)
    chosen = {"tasks": [task], "data": [str(tmp_path / "long.txt")], "lengths": [300]}
    assert main([config(model=str(folder), **chosen)]) == 2
    assert "nan' has logits that are NaN" in capsys.readouterr().err


def test_losses(config, options, tmp_path, capsys):
    changes = {
        "tasks": ["perplexity", "loss_by_position", "longppl"],
        "lengths": [48, 64],
        "data": [str(tmp_path / "long.txt")],
        "stride": 16,
        "position_bins": 4,
        "short_context": 16,
        "short_stride": 8,
        "key_model": options["model"],
    }
    assert main([config(**changes)]) == 0
    folder = Path(options["output_dir"])
    results = json.loads((folder / "results.json").read_text())
    by_name = {(cell["task"], cell["length"]): cell["result"] for cell in results["cells"]}
    assert by_name["perplexity", 48]["tokens"] == 63
    # In windows of the whole text, perplexity and the loss of the whole text are the same.
    loss = by_name["perplexity", 64]["loss"]
    assert by_name["loss_by_position", 64]["loss"] == pytest.approx(loss, rel=1e-5)
    assert by_name["longppl", 64]["all"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert [part["start"] for part in by_name["loss_by_position", 48]["bins"]] == [0, 12, 24, 36]
    assert (folder / "loss_by_position.png").exists()
    assert "perplexity, sliding window" in capsys.readouterr().out


def test_a_dry_run_prints_counts_and_an_example_and_writes_nothing(config, options, capsys):
    assert main([config(trials=None), "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "8 cells, 0 finished" in text
    for line in ("passkey at 450 tokens", "50", "500", "What is the pass key?", "must hold"):
        assert line in text
    assert "Model type llama, lrk's operations" in text
    assert not Path(options["output_dir"]).exists()


def test_a_dry_run_of_a_share_counts_its_cells(config, capsys):
    assert main([config(), "--dry_run", "--shard", "0/3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "8 cells, 0 finished" in lines
    assert "2 of them in share 0/3" in lines or "3 of them in share 0/3" in lines
    assert "shard: 0/3" not in lines


def test_a_model_that_lrk_does_not_patch_runs_as_it_is(config, options, tokenizer, tmp_path):
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 512}
    GPT2LMHeadModel(GPT2Config(vocab_size=640, **sizes)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    changes = {"model": str(tmp_path / "gpt2"), "tasks": ["passkey"], "lengths": [450]}
    assert main([config(**changes)]) == 0
    results = json.loads((Path(options["output_dir"]) / "results.json").read_text())
    assert results["cells"][0]["settings"]["patched"] is False


@pytest.fixture
def other_folders(tmp_path, tokenizer) -> Path:
    for name, positions in (("gpt2", 128), ("empty", 0)):
        (tmp_path / name).mkdir()
        if positions:
            config = GPT2Config(vocab_size=640, n_positions=positions)
            config.save_pretrained(tmp_path / name)
            tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "dangling").symlink_to("/nowhere")
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "model is missing"),
        ({"output_dir": None}, "output_dir is missing"),
        ({"tasks": None}, "tasks is empty; it must name some of passkey"),
        ({"tasks": ["niah_sngle_1"]}, "tasks 'niah_sngle_1' is unknown; it must be one of"),
        ({"lengths": None}, "lengths is empty"),
        ({"lengths": [1]}, "lengths has 1; each must be at least 2"),
        ({"lengths": [40]}, "length 40 is too short for task passkey: its shortest prompt has"),
        ({"trials": 0}, "trials is 0; it must be at least 1"),
        ({"batch_size": -1}, "batch_size is -1; it must be at least 1"),
        ({"depths": [120]}, "depths has 120.0; each must be between 0 and 100"),
        ({"dtype": "int8"}, "dtype 'int8' is unknown; it must be one of auto"),
        ({"device": "abacus"}, "device 'abacus' is unknown to torch"),
        ({"shard": "3/2"}, "shard is 3/2; it must read i/n with i from 0 to n - 1"),
        ({"shard": "x"}, "shard is 'x'; it must read i/n with i from 0 to n - 1, such as 0/4"),
        (
            {"shard": "0/2", "overwrite_output_dir": True},
            "overwrite_output_dir is true for share 0/2 of the cells, which would delete those of",
        ),
        ({"device": None, "device_map": "fast"}, "device_map 'fast' is unknown; it must be one of"),
        ({"device_map": "auto"}, "device is 'cpu' and device_map 'auto'; give one of them"),
        ({"trails": 3}, "unknown key 'trails' in"),
        ({"trials": "many"}, "argument --trials: invalid int value: 'many'"),
        ({"needle": "Eat."}, "needle, question and answer go together"),
        ({"tasks": ["niah_single_2"]}, "task niah_single_2 needs haystack: a text file"),
        ({"tasks": ["qa_1"]}, "task qa_1 needs squad: the file dev-v2.0.json"),
        ({"haystack": "{}/absent.txt"}, "absent.txt' does not exist"),
        ({"tasks": ["perplexity"]}, "data is empty; task perplexity must have texts"),
        (
            {"tasks": ["perplexity"], "data": ["{}/short.txt"], "lengths": [450]},
            "none of the 1 documents of data has 450 tokens; the longest has",
        ),
        (
            {"tasks": ["perplexity"], "data": ["{}/long.txt"], "lengths": [64]},
            "stride is 256; it must be at least 1 and less than the shortest of lengths, 64",
        ),
        (
            {"tasks": ["longppl"], "data": ["{}/long.txt"]},
            "lengths has 450; task longppl needs more than short_context + short_stride, 5120",
        ),
        (
            {"tasks": ["loss_by_position"], "data": ["{}/long.txt"], "document_length": 100},
            "document_length is 100; task loss_by_position at length 512 needs as many",
        ),
        (
            {"tasks": ["perplexity"], "data": ["{}/long.txt"], "document_length": 500},
            "document_length is 500; task perplexity at length 512 needs as many",
        ),
        ({"lm_eval_tasks": ["arc_easy"]}, "lm_eval_tasks needs the package lm-eval"),
        ({"lm_eval_folder": "{}/nowhere"}, "lm_eval_folder '"),
        ({"model": "{}/nowhere"}, "nowhere' does not exist"),
        ({"model": "{}/empty"}, "cannot be loaded"),
        ({"model": "{}/gpt2", "patch": True}, "patch is true, but model"),
        ({"model": "{}/gpt2"}, "lengths has 512, but model"),
        ({"tokenizer": "{}/nowhere"}, "tokenizer '"),
        ({"chat_template": True}, "chat_template is true, but the tokenizer has no"),
        ({"output_dir": "{}/long.txt"}, "long.txt' is a file; it must be a folder"),
        ({"output_dir": "{}/long.txt/below"}, "long.txt', which is a file; it must be a folder"),
        ({"output_dir": "{}/dangling"}, "dangling' is a link to '/nowhere', which is not there"),
        ({"output_dir": "/proc/results"}, "output_dir '/proc/results' cannot be written to"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence(config, other_folders, capsys, monkeypatch, changes, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    def filled(value):
        if isinstance(value, list):
            return [filled(item) for item in value]
        return value.format(other_folders) if isinstance(value, str) else value

    status = main([config(**{key: filled(value) for key, value in changes.items()})])
    error = capsys.readouterr().err
    assert status == 2
    lines = [line for line in error.splitlines() if line.startswith("lrk-eval: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert error.splitlines()[-1] == lines[0]


def test_without_wonderwords_its_tasks_say_so(config, capsys, monkeypatch):
    monkeypatch.setattr("lrk.eval.words.is_installed", lambda: False)
    assert main([config(tasks=["cwe"])]) == 2
    assert "task cwe needs the package wonderwords" in capsys.readouterr().err


def test_command_line_beats_file_and_hyphens_are_underscores(config):
    made = parse([config(), "--batch-size", "4", "--lengths", "64", "128", "--chat-template"])
    assert (made.batch_size, made.lengths, made.chat_template) == (4, [64, 128], True)
    assert made.tasks == ["passkey", "niah_multikey_3", "niah_grid"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lenghts", "3"], "unknown key '--lenghts'; did you mean '--lengths'"),
        (["stray"], "'stray' is neither a key nor the value of one"),
        (["a.yaml", "b.yaml"], "there are 2 configuration files"),
        (["absent.yaml"], "configuration file 'absent.yaml' does not exist"),
    ],
)
def test_bad_command_lines(words, message):
    with pytest.raises(ValueError, match=message):
        parse(words)


def test_help_names_arguments_and_defaults(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "--lm_eval_tasks" in text
    assert "(default: 256)" in text

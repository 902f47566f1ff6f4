"""Stages: what a configuration of several says, and running them."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from lrk import atomic
from lrk.data import Preparation, prepare
from lrk.merge import Linear, Slerp, TaskArithmetic, stream
from lrk.positions import scaled_rope_theta
from lrk.recipe import ImpactfulTokens
from lrk.train import LrkTrainingArguments, parse
from lrk.train.command import main
from lrk.train.evaluations import losses_by_step
from lrk.train.model_card import merge_card, model_card
from lrk.train.parser import given
from lrk.train.staged_run import check, run_stages
from lrk.train.stages import parse_stages
from lrk.train.telemetry import read_metrics
from studies.kill_and_resume_stages import StagedStudy

EXTENSION = {"kind": "extension", "learning_rate": 1e-2}
ANNEALING = {"kind": "annealing", "learning_rate": 1e-2, "max_steps": 3}
MERGE = {"kind": "merge"}


@pytest.fixture
def config(options: dict[str, Any], corpus: Path, tmp_path: Path):
    def write(*stages: dict[str, Any], **above: Any) -> str:
        shared = options | {"eval_data": [str(corpus / "held_out")]} | above
        del shared["learning_rate"]
        shared = {key: value for key, value in shared.items() if value is not None}
        path = tmp_path / "config.yaml"
        stages = stages or (EXTENSION, ANNEALING, MERGE)
        # Through JSON, so that what stands in two stages is written out twice.
        content = json.loads(json.dumps({**shared, "stages": list(stages)}))
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


def test_stage_beats_what_is_above_and_that_beats_the_kind(config):
    staged = parse_stages(
        [config({"kind": "extension"}, ANNEALING, MERGE, weight_decay=0.2), "--max_steps", "5"]
    )
    extension, annealing, merge = staged.stages
    assert extension.values["learning_rate"] == 5e-5
    assert extension.values["lr_scheduler_type"] == "constant"
    assert extension.values["weight_decay"] == 0.2
    assert extension.values["max_steps"] == 5
    assert annealing.values["learning_rate"] == 1e-2
    assert annealing.values["lr_scheduler_type"] == "linear"
    assert annealing.values["max_steps"] == 5, "the command line beats a stage"
    assert annealing.values["position_method"] == "contiguous"
    assert [stage.start for stage in staged.stages] == ["original", "extension", "annealing"]
    assert [stage.folder.name for stage in staged.stages] == [
        "01-extension",
        "02-annealing",
        "03-merge",
    ]
    assert merge.merge.models == ("original", "annealing")
    assert merge.merge.rule.coefficients([None, None]) == [0.5, 0.5]


def test_merges_may_name_models_and_rules(config):
    slerp = {"kind": "merge", "name": "arc", "models": ["extension", "annealing"], "rule": "slerp"}
    tasks = {"kind": "merge", "rule": "task_arithmetic", "weights": [0.7]}
    staged = parse_stages([config(EXTENSION, ANNEALING, slerp | {"t": 0.3}, tasks)])
    assert staged.stages[2].merge.rule == Slerp(0.3)
    assert staged.stages[2].merge.models == ("extension", "annealing")
    assert staged.stages[3].merge.rule == TaskArithmetic([0.7])
    assert staged.stages[3].merge.models == ("original", "arc")


def test_the_resolved_configuration_reads_back_to_the_same_run(config, tmp_path):
    words = ["--max-steps", "4", "--kernels.rope", "false", "--data", "a.txt", "b.txt"]
    path = config(
        EXTENSION | {"kernels": {"cross_entropy": False}, "max_steps": 9},
        ANNEALING,
        MERGE,
        evaluation={"tasks": ["passkey"], "lengths": [64]},
    )
    words += ["--stages.annealing.max-steps=3", "--stages.merge.weights", "0.25", "0.75"]
    staged = parse_stages([path, *words, "--resume_from_checkpoint", "auto"])
    (tmp_path / "again.yaml").write_text(staged.yaml)
    again = parse_stages([str(tmp_path / "again.yaml")])
    assert again.stages == staged.stages
    assert again.yaml == staged.yaml
    assert again.stages[0].values["kernels"] == {"cross_entropy": False, "rope": False}
    assert [stage.values["max_steps"] for stage in again.stages] == [4, 3, 3]
    assert again.stages[2].merge.rule == Linear([0.25, 0.75])
    assert (staged.resume, again.resume) == ("auto", "false")


def test_a_file_without_stages_is_one_run(config, options, tmp_path):
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(options))
    assert parse_stages([str(tmp_path / "one.yaml")]) is None
    with pytest.raises(ValueError, match=r"has stages; lrk.train.stages.parse_stages reads it"):
        parse([config()])


def test_an_empty_value_in_a_stage_is_the_default(config):
    staged = parse_stages([config(EXTENSION | {"seed": None}, seed=7)])
    assert "seed" not in staged.stages[0].values


@pytest.mark.parametrize(
    ("stages", "above", "message"),
    [
        ([{"name": "x"}], {}, "stage 1 has kind 'None'; it must be one of extension, annealing"),
        ([{"kind": "anealing"}], {}, "kind 'anealing'; .*; did you mean 'annealing'"),
        (
            [EXTENSION | {"learnig_rate": 1}],
            {},
            "unknown key 'learnig_rate' in stage 'extension' of .*; did you mean 'learning_rate'",
        ),
        ([EXTENSION, EXTENSION], {}, "stage 2 has the name 'extension'; .* no other stage's"),
        ([EXTENSION | {"name": "original"}], {}, "stage 1 has the name 'original'"),
        ([EXTENSION | {"name": "../up"}], {}, r"stage 1 has the name '\.\./up'"),
        ([EXTENSION | {"output_dir": "x"}], {}, "output_dir stands in stage 'extension' of"),
        ([EXTENSION | {"max_steps": "many"}], {}, "stage 'extension' of .*: argument --max_steps"),
        (
            [EXTENSION, ANNEALING | {"train_length": 512}],
            {},
            "stage 'annealing': target_length is 256, shorter than train_length 512",
        ),
        ([MERGE], {}, "stage 'merge' of .* is a merge without a stage before it"),
        ([EXTENSION, MERGE | {"max_steps": 3}], {}, "unknown key 'max_steps' in stage 'merge' of"),
        ([EXTENSION, MERGE | {"model": []}], {}, "unknown key 'model' .*; did you mean 'models'"),
        (
            [EXTENSION, MERGE | {"models": ["original", "annealing"]}],
            {},
            "models in stage 'merge' of .* must be a list of some of original, extension",
        ),
        ([EXTENSION, MERGE | {"rule": "slurp"}], {}, "rule 'slurp' .*; did you mean 'slerp'"),
        (
            [EXTENSION, MERGE | {"t": 0.5}],
            {},
            "t stands in stage 'merge' .* rule 'linear' has none",
        ),
        ([EXTENSION, MERGE | {"weights": [1, 1]}], {}, "weights are 1.0 1.0; they must add up to"),
        (
            [EXTENSION, MERGE | {"weights": ["half"]}],
            {},
            "weights and t in stage 'merge' .* number",
        ),
        ([EXTENSION], {"output_dir": None}, "output_dir is missing; with stages it must stand"),
        ([EXTENSION], {"resume_from_checkpoint": "x/checkpoint-1"}, "must be true, auto or false"),
        (
            [EXTENSION],
            {"evaluation": {"taks": ["a"]}},
            "stage 'extension': unknown key 'taks' in evaluation; did you mean 'tasks'",
        ),
        ([EXTENSION], {"evaluation": {"model": "x"}}, "model stands in evaluation of stage 'ext"),
        ([EXTENSION], {"evaluation": ["a"]}, "evaluation in stage 'extension' .* a mapping"),
        ([EXTENSION, MERGE], {"gguf_file": "m.gguf"}, "stage 'merge' merges the original model"),
        (
            [EXTENSION, ANNEALING],
            {"attention_temperature": 1.2},
            "stage 'annealing': attention_temperature is 1.2 with position_method 'contiguous'",
        ),
        ([EXTENSION], {"data_shares": [0.5, 0.5]}, "data_shares has 2 entries .* for 1 sources"),
        ([EXTENSION], {"stage": []}, "unknown key 'stage' in .*; did you mean 'stages'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_stages(config, stages, above, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_stages([config(*stages, **above)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stages.anealing.seed", "1"], "no stage 'anealing' for .*; did you mean 'annealing'"),
        (["--stages.annealing.sed", "1"], "unknown key 'sed' in stage 'annealing'"),
        (["--sed", "1"], "unknown key 'sed' in"),
        (["stray"], "'stray' is neither a key nor the value of one"),
    ],
)
def test_bad_command_lines(config, words, message):
    with pytest.raises(ValueError, match=message):
        parse_stages([config(), *words])


def test_a_switch_without_a_value(config):
    def packs(*words: str) -> list[bool]:
        path = config(EXTENSION | {"pack": True}, ANNEALING)
        return [stage.values.get("pack") for stage in parse_stages([path, *words]).stages]

    assert packs() == [True, None]
    assert packs("--no-pack") == [False, False]
    assert packs("--stages.annealing.no_pack") == [True, False]
    assert packs("--stages.annealing.pack", "--seed", "1") == [True, True]


def test_help(config, capsys):
    with pytest.raises(SystemExit):
        parse_stages([config(), "--help"])
    assert "--learning_rate" in capsys.readouterr().out


def test_an_evaluation_runs_in_one_process(config, monkeypatch):
    monkeypatch.setattr(LrkTrainingArguments, "world_size", 2)
    assert len(parse_stages([config()]).stages) == 3
    with pytest.raises(ValueError, match=r"'extension': evaluation is given with 2 processes; .*"):
        parse_stages([config(evaluation={"tasks": ["passkey"], "lengths": [64]})])


def test_stages_that_are_no_list(config, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("output_dir: x\nstages: {kind: extension}\n")
    with pytest.raises(ValueError, match=r"stages in .* must be a list of mappings"):
        parse_stages([str(path)])
    path.write_text("output_dir: x\nmodel_name_or_path: y\nstages: []\n")
    with pytest.raises(ValueError, match=r"stages in .* is empty"):
        parse_stages([str(path)])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_three_stages(config, corpus, model_folder, options, capsys):
    shares = {"data": [str(corpus / f"{n}.txt") for n in (0, 1)], "data_shares": [0.75, 0.25]}
    evaluation = {"tasks": ["perplexity"], "lengths": [32], "stride": 16, "dtype": "float32"}
    evaluation |= {"data": [str(corpus / "held_out")], "documents": 1, "document_length": 64}
    path = config(EXTENSION, ANNEALING | shares, MERGE, evaluation=evaluation)
    assert main([path]) == 0
    root = Path(options["output_dir"])
    table = (root / "stages.md").read_text()
    said = capsys.readouterr().out
    first, _, last = said.partition(table)
    # Each stage that trains says so, and only the first one evaluates the model before it.
    assert [line for line in first.splitlines() if line.startswith("Training ")] == [
        *(f"Training {model_folder}", f"Training {root / '01-extension'}")
    ]
    assert first.count("the untouched model is evaluated") == 1
    assert f"Saved to {root / '03-merge'}: the model" in last
    assert f"--model {model_folder} --tasks passkey --lengths 64 256" in last
    for name in ("original", "01-extension", "02-annealing", "03-merge"):
        assert f"| {name} | " in table
    for name in ("01-extension", "02-annealing", "03-merge"):
        assert (root / name / "evaluation" / "results.json").exists()
    record = json.loads((root / "stages.json").read_text())
    assert {each["state"] for each in record.values()} == {"finished"}
    assert all(each["losses"].keys() == {"32", "256"} for each in record.values())
    rows = read_metrics(root / "01-extension" / "metrics.jsonl")
    before = losses_by_step(rows)[0]
    assert f"| original | {before[32]:.4f} | {before[256]:.4f} |" in table
    rates = [
        row["learning_rate"]
        for row in read_metrics(root / "02-annealing" / "metrics.jsonl")
        if "loss" in row
    ]
    assert rates == pytest.approx([1e-2, 2e-2 / 3, 1e-2 / 3])

    # The mean of the original and the annealed model, in the window of the latter.
    merged, original, annealed = map(
        weights, (root / "03-merge", model_folder, root / "02-annealing")
    )
    for name, tensor in merged.items():
        mean = (original[name].double() + annealed[name].double()) / 2
        assert torch.equal(tensor, mean.float())
    model = AutoModelForCausalLM.from_pretrained(root / "03-merge")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.max_position_embeddings == 256
    rows = read_metrics(root / "03-merge" / "metrics.jsonl")
    assert record["03-merge"]["losses"]["32"] in [row.get("eval_32_loss") for row in rows]

    cards = {name: (root / name / "README.md").read_text() for name in record}
    assert all(f"\n{model_folder}, " in card for card in cards.values())
    assert ", here from `01-extension` on." in cards["02-annealing"]
    assert ": original, 02-annealing, by `lrk.merge.Linear(weights=None)`." in cards["03-merge"]
    assert f"| {record['03-merge']['losses']['32']:.4f} (step 0) |" in cards["03-merge"]

    # What is finished is not run again.
    times = {file: file.stat().st_mtime_ns for file in root.rglob("model.safetensors")}
    other_ways = ["--dataloader_num_workers", "1", "--kernels.rope", "false", "--logging_steps=5"]
    for words in ([], other_ways):
        assert main([path, "--resume_from_checkpoint", "true", *words]) == 0
        assert {file: file.stat().st_mtime_ns for file in times} == times
        assert capsys.readouterr().out.startswith(table)

    assert main([path]) == 2
    assert "holds another run (stages.json)" in capsys.readouterr().err
    assert main([path, "--resume_from_checkpoint", "--seed", "3"]) == 2
    error = capsys.readouterr().err
    assert "stage '01-extension'" in error
    assert "is finished with seed None, which is 3 now" in error


def test_full_length_in_a_window_that_grows(config, options, capsys):
    """Each stage trains whole documents up to its window, and the last one ends with the RoPE of a
    model that goes to its window at once."""
    full = {"kind": "extension", "position_method": "contiguous", "max_steps": 1}
    lengths = {"first": 128, "second": 256}
    stages = [
        full | {"name": name, "target_length": length, "train_length": length}
        for name, length in lengths.items()
    ]
    path = config(*stages, eval_data=None)
    assert main([path, "--dry_run"]) == 0
    text = capsys.readouterr().out
    bases = [scaled_rope_theta(10_000.0, 64, length, 8) for length in (128, 256)]
    of_each = [f"default, base {base:,.0f}" for base in bases]
    assert f"RoPE             default, base 10,000 -> {of_each[0]}, by rope_scaling" in text
    assert f"RoPE             {of_each[0]} -> {of_each[1]}, by rope_scaling theta\n" in text
    for window in (64, 128):
        assert f"lie beyond the model's window of {window}; " in text

    assert main([path]) == 0
    for folder, base, window in zip(("01-first", "02-second"), bases, (128, 256), strict=True):
        root = Path(options["output_dir"]) / folder
        saved = AutoConfig.from_pretrained(root)
        assert saved.max_position_embeddings == window
        assert saved.rope_parameters["rope_theta"] == base
        assert (
            json.loads((root / "tokenizer_config.json").read_text())["model_max_length"] == window
        )
    card = (root / "README.md").read_text()
    assert "beyond the window before | " in card
    assert "of the 128 distances that are new; all 2 layers are reached |" in card


def test_a_merge_on_a_full_disk(config, options, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path, root = config(EXTENSION | {"max_steps": 1}, MERGE), Path(options["output_dir"])
    with monkeypatch.context() as patched:
        patched.setattr(stream, "write_blocks", full)
        assert main([path]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"lrk-train: '{root / '02-merge'}' could not be saved ([Errno 28] No ")
    assert not (root / "02-merge").exists()
    time = (root / "01-extension" / "model.safetensors").stat().st_mtime_ns
    assert main([path, "--resume_from_checkpoint"]) == 0
    assert (root / "01-extension" / "model.safetensors").stat().st_mtime_ns == time
    assert (root / "02-merge" / "model.safetensors").exists()


def test_a_dry_run_describes_every_stage_and_writes_nothing(config, corpus, options, capsys):
    sources = [str(corpus / f"{n}.txt") for n in (0, 1)]
    mixed = {"data": sources, "data_shares": [0.75, 0.25]}
    assert main([config(EXTENSION, ANNEALING | mixed, MERGE), "--dry_run"]) == 0
    text = capsys.readouterr().out
    root = Path(options["output_dir"])
    assert f"Stage 1 of 3: extension (extension), from {options['model_name_or_path']}" in text
    assert f"Stage 2 of 3: annealing (annealing), from {root / '01-extension'}" in text
    assert f"Stage 3 of 3: merge (merge) of {options['model_name_or_path']}, {root}" in text
    assert text.count("Token plan") == 2
    for share, source, times in (("75.0%", sources[0], 3.0), ("25.0%", sources[1], 1.0)):
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {share} ")]
        assert line.endswith(f" samples of {source}, each {times} times")
    assert not root.exists()


def test_a_later_stage_is_checked_before_the_first_begins(config, options, tmp_path, capsys):
    assert main([config(EXTENSION, ANNEALING | {"data": str(tmp_path / "absent.jsonl")})]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("lrk-train: stage 'annealing': data source ")
    assert "absent.jsonl' does not exist" in line
    assert not Path(options["output_dir"]).exists()


def test_a_later_teacher_has_the_window_that_earlier_stages_leave(config):
    first = EXTENSION | {"target_length": 128}
    second = EXTENSION | {"name": "second", "train_length": 160, "distill": "original"}
    check(parse_stages([config(first, second | {"distill_length": 128})]))
    staged = parse_stages([config(first, second | {"distill_length": 129})])
    with pytest.raises(ValueError, match=r"^stage 'second': distill_length is 129; .* from, 128, "):
        check(staged)


def test_what_is_prepared_is_checked_too(config, corpus, tokenizer, tmp_path):
    folder = tmp_path / "prepared"
    prepare(Preparation([str(corpus / "*.txt")]), tokenizer, folder)
    annealing = ANNEALING | {"data": str(folder)}
    check(parse_stages([config(EXTENSION, annealing)]))
    streaming = parse_stages([config(EXTENSION, annealing | {"streaming": True})])
    with pytest.raises(ValueError, match=r"stage 'annealing': data source .* is prepared and read"):
        check(streaming)
    next(folder.glob("documents-*")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"stage 'annealing': shard .* is damaged"):
        check(parse_stages([config(EXTENSION, annealing)]))


def test_the_table_is_checked_too(config, tokenizer, tmp_path):
    table = tmp_path / "table.json"
    for key in ("selection", "token_loss"):
        keys = {"position_method": "longrecipe", key: "impactful", "impactful_tokens": str(table)}
        staged = parse_stages([config(EXTENSION, ANNEALING | keys)])
        table.write_text(ImpactfulTokens.of(tokenizer, [5]).to_json())
        check(staged)
        table.unlink()
        with pytest.raises(
            ValueError, match=r"stage 'annealing': impactful_tokens .* cannot be re"
        ):
            check(staged)


def test_a_run_that_is_killed_as_it_begins_goes_on(config, options, monkeypatch):
    def killed(path: Path, text: str) -> None:
        if path.name == "config.yaml":
            raise KeyboardInterrupt
        write(path, text)

    write, path = atomic.write_text, config()
    monkeypatch.setattr(atomic, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        run_stages(parse_stages([path]))
    names = {file.name for file in Path(options["output_dir"]).iterdir()}
    assert names - {".lock"} == {"stages.json"}
    for choice in ("true", "auto"):
        check(parse_stages([path, "--resume_from_checkpoint", choice]))


def test_a_card_names_the_model_of_the_hub():
    config = AutoConfig.for_model("llama")
    made = LrkTrainingArguments(
        model_name_or_path="run/01-extension", output_dir="run/02-annealing", token_loss="longce"
    )
    card = model_card(made, config, [{"step": 1, "loss": 2.0}], "owner/name")
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "owner/name"
    assert "owner/name, trained by lrk-train for a window of 2,048 tokens, here from" in card
    assert "| tokens weighed in training by | longce |" in card
    assert "| training, weighed by longce | 2.0000 (step 1) |" in card
    card = merge_card(made, config, [], "owner/name", ["original", "02-annealing"], Slerp(0.3))
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "owner/name"


def test_adapters_begin_the_same_whatever_ran_before(config, options, tmp_path):
    """Killed between two stages, a run goes on in another process: here without the first stage."""
    lora = {"lora_rank": 2, "lora_dropout": 0.1, "max_steps": 1}
    assert main([config(EXTENSION, ANNEALING | lora)]) == 0
    root = Path(options["output_dir"])
    (tmp_path / "alone.yaml").write_text((root / "02-annealing" / "config.yaml").read_text())
    torch.manual_seed(123)
    words = [str(tmp_path / "alone.yaml"), "--output_dir", str(tmp_path / "alone")]
    assert main(words) == 0
    alone, staged = weights(tmp_path / "alone"), weights(root / "02-annealing")
    assert [name for name in staged if not alone[name].equal(staged[name])] == []


def test_a_merge_has_no_adapters(config, options):
    lora = {"lora_rank": 2, "lora_dropout": 0.1, "lora_targets": ["q_proj"]}
    staged = parse_stages([config(EXTENSION, ANNEALING | lora, MERGE)])
    _, annealing, merge = staged.stages
    assert annealing.arguments(*staged.start_of(annealing)).lora_dropout == 0.1
    assert merge.arguments(options["output_dir"], None).lora_rank == 0


@pytest.mark.parametrize("name", ["llama-3-8b-131072-stages", "smollm2-135m-131072-stages"])
def test_presets(name):
    staged = parse_stages([name, "--use_cpu", "--stages.extension.data", "a.txt", "b.txt"])
    assert [stage.kind for stage in staged.stages] == ["extension", "annealing", "merge"]
    assert staged.stages[0].values["data"] == ["a.txt", "b.txt"]
    with pytest.raises(ValueError, match="has stages"):
        given([name])


def test_a_run_that_is_killed_in_every_stage_ends_with_the_same_weights(tmp_path):
    """One of the runs of `python -m studies.kill_and_resume_stages`."""
    trial = StagedStudy(tmp_path, seed=0).trial(0)
    assert len(trial.killed) == 3
    assert trial.faults == []


@pytest.fixture
def old_files(model_folder: Path, tmp_path: Path) -> Path:
    """As Llama 2 and its kin came: frequencies, a spelling of old, code of their own."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "original"))
    weights = load_file(folder / "model.safetensors")
    for layer in range(2):
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LLaMAForCausalLM"], "_flash_attn_2_enabled": True}
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_old.OldForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_stages_of_a_model_in_old_files_are_merged(config, options, old_files):
    path = config(EXTENSION, MERGE, model_name_or_path=str(old_files), eval_data=None)
    assert main([path]) == 0
    folder = Path(options["output_dir"])
    original, extended, merged = (
        load_file(each / "model.safetensors")
        for each in (old_files, folder / "01-extension", folder / "02-merge")
    )
    assert merged.keys() == extended.keys() < original.keys()
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(merged[name], (original[name] + extended[name]) / 2)


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("model.norm.weight", "original has no tensor model.norm.weight"),
        ("lm_head.weight", "original has no tensor lm_head.weight"),
    ],
)
def test_a_merge_that_would_be_refused_is_found_before_the_first_stage(
    config, options, old_files, capsys, missing, sentence
):
    """A tensor that the original lacks is made anew by loading, and so in what a stage saves."""
    weights = load_file(old_files / "model.safetensors")
    del weights[missing]
    save_file(weights, old_files / "model.safetensors", {"format": "pt"})
    path = config(EXTENSION, MERGE, model_name_or_path=str(old_files), eval_data=None)
    assert main([path]) == 2
    assert sentence in capsys.readouterr().err
    assert not (Path(options["output_dir"]) / "01-extension").exists()


def test_a_stage_that_was_stopped_goes_on_with_its_own_arguments_only(config, options, capsys):
    """config.yaml too stays as it is."""
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "eval_data": None}
    path = config(EXTENSION, **saving)
    assert main([path]) == 0
    folder = Path(options["output_dir"])
    record = json.loads((folder / "stages.json").read_text())
    record["01-extension"]["state"] = "waiting"  # as if it had been killed as it was finishing
    (folder / "stages.json").write_text(json.dumps(record))
    before = (folder / "config.yaml").read_text()
    words = [path, "--resume_from_checkpoint", "true", "--seed", "7"]
    assert main(words) == 2
    assert "is of a run with seed 42, which is 7 now" in capsys.readouterr().err
    assert (folder / "config.yaml").read_text() == before


def test_a_stage_that_saves_models_alone_begins_again(config, options, capsys):
    """Nothing goes on from them, and the stages before it are kept."""
    saving = {"save_strategy": "steps", "save_steps": 1, "save_only_model": True, "max_steps": 2}
    path = config(EXTENSION, **saving, eval_data=None)
    assert main([path]) == 0
    file = Path(options["output_dir"]) / "stages.json"
    record = json.loads(file.read_text())
    record["01-extension"]["state"] = "waiting"  # as if it had been killed as it was finishing
    file.write_text(json.dumps(record))
    assert main([path, "--resume_from_checkpoint", "true"]) == 0, capsys.readouterr().err
    assert json.loads(file.read_text())["01-extension"]["state"] == "finished"


def test_a_staged_run_that_died_before_its_first_step_does_not_block_its_folder(
    config, options, monkeypatch
):
    def dies(*args, **kwargs):
        raise OSError("no space")

    path = config(EXTENSION, eval_data=None)
    with monkeypatch.context() as patched:
        patched.setattr("lrk.train.staged_run.set_up", dies)
        assert main([path]) == 1
    assert main([path]) == 0
    assert main([path]) == 2, "now it holds a run"


def test_an_evaluation_that_would_be_refused_is_found_before_the_first_stage(
    config, options, tmp_path, capsys
):
    evaluation = {"tasks": ["niah_single_2"], "lengths": [256], "haystack": str(tmp_path / "no")}
    assert main([config(EXTENSION, evaluation=evaluation, eval_data=None)]) == 2
    assert "haystack" in capsys.readouterr().err
    assert not (Path(options["output_dir"]) / "01-extension").exists()


def test_a_token_of_the_hub_is_in_nothing_that_a_staged_run_writes(config):
    staged = parse_stages([config({**EXTENSION, "hub-token": "hf_own"}, hub_token="hf_secret")])
    assert staged.stages[0].values["hub_token"] == "hf_own"
    for written in (staged.yaml, str(staged.stages[0].settings)):
        assert "hf_" not in written

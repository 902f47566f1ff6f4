from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from lrk.train import LrkTrainingArguments, parse
from lrk.train.command import main
from lrk.train.presets import preset_names
from lrk.train.stages import parse_stages

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


BASE = "output_dir: run\n"


def test_command_line_beats_file_beats_default(config):
    path = config(BASE + "learning_rate: 2e-4\nseed: 5\n")
    made = parse([path, "--learning_rate", "1e-5"])
    assert (made.learning_rate, made.seed, made.weight_decay) == (1e-5, 5, 0.0)


def test_a_file_may_come_after_a_flag(config):
    made = parse(["--dry_run", config(BASE)])
    assert made.dry_run is True


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("learning_rate: 1e-5", "learning_rate", 1e-5),
        ("learning-rate: 1E-5", "learning_rate", 1e-5),
        ("max_steps: 7", "max_steps", 7),
        ("max_steps: -1", "max_steps", -1),
        ("max_steps: null", "max_steps", -1),
        ("max_steps:", "max_steps", -1),
        ("gradient_checkpointing: true", "gradient_checkpointing", True),
        ("gradient_checkpointing: no", "gradient_checkpointing", False),
        ("pack: false", "pack", False),
        ("data: [a.txt, b.txt]", "data", ["a.txt", "b.txt"]),
        ("data: a.txt", "data", ["a.txt"]),
        ("data: []", "data", []),
        ("eval_lengths: [50000, 131072]", "eval_lengths", [50000, 131072]),
        ("report_to: tensorboard", "report_to", ["tensorboard"]),
        ("report_to: [tensorboard, wandb]", "report_to", ["tensorboard", "wandb"]),
        ("lora_targets: all-linear", "lora_targets", "all-linear"),
        ("lora_rank: 4\nlora_targets: [q_proj, v_proj]", "lora_targets", ["q_proj", "v_proj"]),
        ("run_name: 007", "run_name", "007"),
        ("run_name: 'a: b'", "run_name", "a: b"),
        ("lr_scheduler_kwargs: {min_lr: 1e-6}", "lr_scheduler_kwargs", {"min_lr": 1e-6}),
        (
            "gradient_checkpointing_kwargs: {use_reentrant: false}",
            "gradient_checkpointing_kwargs",
            {"use_reentrant": False},
        ),
    ],
)
def test_values_of_the_file(config, line, name, value):
    assert getattr(parse([config(BASE + line + "\n")]), name) == value


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--learning-rate", "1e-5"], "learning_rate", 1e-5),
        (["--learning-rate=1e-5"], "learning_rate", 1e-5),
        (["--per-device_train-batch_size", "3"], "per_device_train_batch_size", 3),
        (["--data", "a", "b"], "data", ["a", "b"]),
        (["--bf16"], "bf16", True),
        (["--bf16", "false"], "bf16", False),
        (["--no_pack"], "pack", False),
        (["--resume_from_checkpoint"], "resume_from_checkpoint", "true"),
        (
            ["--resume_from_checkpoint", "a/checkpoint-1"],
            "resume_from_checkpoint",
            "a/checkpoint-1",
        ),
        (["--no-pack"], "pack", False),
        (["--output-dir", "with-hyphen"], "output_dir", "with-hyphen"),
    ],
    ids=str,
)
def test_values_of_the_command_line(words, name, value):
    assert getattr(parse(["--output_dir", "run", "--use_cpu", *words]), name) == value


def test_kernels_are_a_mapping_in_both_places(config):
    path = config(BASE + "position_method: contiguous\nkernels: {attention: false, rope: false}\n")
    assert parse([path]).kernels == {"rope": False, "attention": False, "cross_entropy": True}
    made = parse([path, "--kernels.rope", "true", "--kernels.cross-entropy=false"])
    assert made.kernels == {"rope": True, "attention": False, "cross_entropy": False}


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("flash_attention_2", "flash_attention_2"),
        ("sdpa", "sdpa"),
        ("lrk", True),
        ("true", True),
        ("false", False),
    ],
)
def test_the_attention_may_be_anothers(config, text, choice):
    start = BASE + "position_method: contiguous\npack: false\n"
    in_file = parse([config(start + f"kernels: {{attention: {text}}}\n")])
    on_the_line = parse([config(start), "--kernels.attention", text])
    again = parse([config(in_file.to_yaml())])
    for made in (in_file, on_the_line, again):
        assert made.kernels == {"rope": True, "attention": choice, "cross_entropy": True}
        assert type(made.kernels["attention"]) is type(choice)


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("learnig_rate: 1\n", [], r"unknown key 'learnig_rate' in .*did you mean 'learning_rate'"),
        ("kernels: {rop: true}\n", [], "unknown key 'kernels.rop' .*did you mean 'kernels.rope'"),
        ("zzzz: 1\n", [], r"unknown key 'zzzz' in .*config\.yaml$"),
        ("", ["--learnig-rate", "1"], "unknown key '--learnig_rate'; did you mean '--learning_rat"),
        ("", ["--learning", "1"], "unknown key '--learning'"),
        ("", ["stray"], "'stray' is neither a key nor the value of one"),
        ("learning_rate: fast\n", [], "argument --learning_rate: invalid float value: 'fast'"),
        ("max_steps: [1, 2]\n", [], r"max_steps is \['1', '2'\]; it must be one value, not a list"),
        ("seed: 1\nseed: 2\n", [], "key 'seed' stands there twice"),
        (
            'eval_data: [corpus, "--learning_rate", "0.5"]\n',
            [],
            "eval_data has '--learning_rate' in its list, which begins with '-'",
        ),
        ("data: [{a: b}]\n", [], "data has {'a': 'b'} in its list; it must hold single values"),
        ("lr_scheduler_kwargs: '{a: b: c}'\n", [], "argument --lr_scheduler_kwargs: .* no mapping"),
        ("pack: perhaps\n", [], "argument --pack: Truthy value expected"),
        ("lr_scheduler_type: flat\n", [], "argument --lr_scheduler_type: invalid choice: 'flat'"),
        ("kernels: maybe\n", [], "unknown key 'kernels' in"),
        ("", ["other.yaml"], "there are 2 configuration files"),
        ("a: [1\n", [], r"config\.yaml is not YAML: .* line"),
    ],
)
def test_bad_files_and_command_lines(config, text, words, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse([config(BASE + text), *words])
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_mapping(config):
    with pytest.raises(ValueError, match="must be a mapping"):
        parse([config("- a\n- b\n")])


def test_a_file_that_is_absent():
    with pytest.raises(ValueError, match=r"configuration file 'absent.yaml' does not exist"):
        parse(["absent.yaml"])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_configurations_that_users_start_from(path):
    words = [str(path), "--use_cpu"]
    assert parse_stages(words) or parse(words)


def test_a_preset_is_a_configuration_by_its_name(config):
    made = parse(["smollm2-135m-131072", "--max-steps", "3", "--use_cpu"])
    assert made.model_name_or_path == "HuggingFaceTB/SmolLM2-135M"
    assert (made.max_steps, made.learning_rate) == (3, 2e-4)
    assert preset_names() == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    message = "'smollm2-135m' is neither a YAML file nor a preset; .*did you mean 'smollm2-135m-1"
    with pytest.raises(ValueError, match=message):
        parse(["smollm2-135m"])


def test_help_names_every_argument(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "--learning_rate" in text
    assert "llama-3-8b-131072" in text
    places = [text.index(part) for part in ("--help_all", "positions and RoPE:", "--rope_theta")]
    assert places == sorted(places)
    of_transformers = {item.name for item in fields(TrainingArguments)}
    for name in set(LrkTrainingArguments.own_names()) - of_transformers - {"kernels"}:
        assert f"--{name} " in text
    assert "--weight_decay" not in text
    with pytest.raises(SystemExit, match="0"):
        parse(["--help_all"])
    whole = capsys.readouterr().out
    assert all(f"--{name} " in whole for name in of_transformers)


def test_presets_are_listed_and_printed(capsys):
    assert main(["--list-presets"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == preset_names()
    assert all(len(line) <= 100 for line in listed)
    assert main(["qwen3-8b-131072", "--print_preset"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs" / "qwen3-8b-131072.yaml").read_text()
    assert main(["--print_preset"]) == 2
    assert "--print_preset prints one preset" in capsys.readouterr().err
    assert main(["qwen3-8b", "--print_preset"]) == 2
    assert "did you mean 'qwen3-8b-131072'" in capsys.readouterr().err
    assert main([]) == 2
    said = capsys.readouterr()
    assert "lrk-train PRESET --data my-documents.jsonl" in said.err + said.out
    assert said.out == ""

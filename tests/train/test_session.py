"""Whole runs of a tiny model, from the files to the saved folder."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

import lrk
from lrk.positions import scaled_rope_theta
from lrk.recipe import Placement, Samples, tokens
from lrk.train import LrkTrainer, LrkTrainingArguments, build_trainer, run, train
from lrk.train.dry_run import dry_run
from lrk.train.pretrained import check_attention_fits, load_config, load_tokenizer
from lrk.train.session import load_samples, set_up
from lrk.train.telemetry import read_metrics
from studies.ranks import run_ranks

STOCK = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (c.from_pretrained(sys.argv[1]) for c in (AutoModelForCausalLM, AutoTokenizer))
prompt = tokenizer("The pass", return_tensors="pt")
ids = model.generate(**prompt, max_new_tokens=4, min_new_tokens=4)
assert not any(name.partition(".")[0] == "lrk" for name in sys.modules)
print(type(model).__name__, model.config.architectures, model.config.max_position_embeddings,
      model.config.use_cache, tokenizer.model_max_length, ids.shape[1])
"""


def weights(trainer: LrkTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def test_a_run_leaves_a_stock_model_and_its_records(arguments, corpus):
    made = arguments(max_steps=20, eval_data=[str(corpus / "held_out")])
    trainer = train(made)
    folder = Path(made.output_dir)

    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("LlamaForCausalLM ['LlamaForCausalLM'] 256 True 256 ")

    config = json.loads((folder / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == scaled_rope_theta(10_000.0, 64, 256, 8)
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (folder / "loss.png").stat().st_size > 0
    assert (folder / "config.yaml").read_text() == made.to_yaml()

    rows = read_metrics(folder / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.5
    assert all(row["tokens_per_second"] > 0 for row in rows if "loss" in row)
    assert all(row["peak_memory_gib"] > 0 for row in rows if "loss" in row)
    assert any("eval_32_loss" in row for row in rows)
    assert any("eval_256_loss" in row for row in rows)

    record = json.loads((folder / "environment.json").read_text())
    assert record["packages"]["torch"] == torch.__version__
    card = (folder / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert "base_model" not in metadata, "a folder of this machine is no name on the hub"
    assert metadata["tags"] == ["lrk", "long-context", "longrecipe"]
    assert f"| training | {losses[0]:.4f} (step 1) | {losses[-1]:.4f} (step 20) |" in card
    assert "| held-out, simulated length 256 |" in card
    assert "## Not measured" in card
    assert "- Texts of more than 32 real tokens" in card
    assert not list(folder.glob(".partial-*"))

    saved = AutoModelForCausalLM.from_pretrained(folder)
    assert_same_weights(dict(saved.state_dict()), weights(trainer))


@pytest.mark.parametrize(("stop", "lora_rank"), [(2, 0), (3, 0), (4, 0), (2, 4)])
def test_a_resumed_run_ends_with_the_same_weights(arguments, tmp_path, stop, lora_rank):
    """3 steps an epoch: the checkpoints lie inside the first epoch, at its end, in the second."""
    options = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": stop,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "lora_rank": lora_rank,
        "lora_dropout": 0.1 if lora_rank else 0.0,
    }
    straight = train(arguments(**options, output_dir=str(tmp_path / "straight")))
    checkpoint = tmp_path / "straight" / f"checkpoint-{stop}"
    shutil.copytree(checkpoint, tmp_path / "resumed" / checkpoint.name)
    shutil.copy(tmp_path / "straight" / "metrics.jsonl", tmp_path / "resumed")
    resumed = train(
        arguments(
            **options,
            output_dir=str(tmp_path / "resumed"),
            resume_from_checkpoint="true",
            dataloader_num_workers=1,
        )
    )
    saved = json.loads((tmp_path / "resumed" / "config.json").read_text())
    assert saved["rope_theta"] == saved["rope_parameters"]["rope_theta"] > 10_000
    assert_same_weights(weights(straight), weights(resumed))
    rows = [row for row in read_metrics(tmp_path / "resumed" / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def prepared_in_a_rank(options: dict, log: Path) -> tuple[int, int]:
    """How many samples there are, made without a barrier; `log` has a line for each tokenizing."""
    rows = tokens._text_rows

    def noted(*given):
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return rows(*given)

    def barrier(*given, **named):
        raise AssertionError("the others would wait, and no longer than a collective may")

    tokens._text_rows = noted
    torch.distributed.barrier = barrier
    datasets.config.HF_DATASETS_CACHE = log.parent / "cache"
    arguments = LrkTrainingArguments(**options, use_cpu=True)
    assert arguments.world_size == 2
    tokenizer = load_tokenizer(arguments, load_config(arguments))
    samples, evaluation = load_samples(arguments, tokenizer)
    assert evaluation is not None
    return len(samples), len(evaluation)


def test_one_rank_tokenizes_and_none_waits_at_a_barrier(options, corpus, tmp_path):
    """Corpora of hours met the limit of a collective, and all ranks but one died."""
    log = tmp_path / "log"
    options |= {"eval_data": [str(corpus / "held_out")]}
    first, second = run_ranks(prepared_in_a_rank, 2, options, log)
    assert first == second
    assert len(log.read_text().split()) == 2, "a batch to train on, a batch to evaluate on"


def test_every_sample_is_placed_anew_in_every_epoch(arguments, monkeypatch):
    drawn = []
    draw = Placement.position_ids

    def recorded(self, sample, epoch=0):
        drawn.append((epoch, sample["index"]))
        return draw(self, sample, epoch)

    made = arguments(max_steps=-1, num_train_epochs=3, per_device_train_batch_size=4)
    trainer = set_up(made)  # surveys samples too
    monkeypatch.setattr(Placement, "position_ids", recorded)
    samples = len(run(trainer).train_dataset)
    assert sorted(drawn) == [(epoch, index) for epoch in range(3) for index in range(samples)]
    assert drawn != sorted(drawn)


def test_workers_do_not_change_a_run(arguments, tmp_path):
    """8 steps reach into the second epoch, which the persistent workers live to see."""

    def final(name: str, **changes) -> dict[str, torch.Tensor]:
        made = arguments(
            max_steps=8,
            per_device_train_batch_size=4,
            output_dir=str(tmp_path / name),
            **changes,
        )
        return weights(train(made))

    alone = final("alone")
    assert_same_weights(
        alone, final("two", dataloader_num_workers=2, dataloader_persistent_workers=True)
    )
    other_seed = final("seed", data_seed=42, seed=43)
    assert any(not torch.equal(alone[name], other_seed[name]) for name in alone)


def test_lora_is_merged_and_its_adapter_kept(arguments, model_folder):
    made = arguments(lora_rank=4, gradient_checkpointing=True, max_steps=4)
    trainer = train(made)
    folder = Path(made.output_dir)
    merged = AutoModelForCausalLM.from_pretrained(folder)
    base = LlamaForCausalLM.from_pretrained(model_folder, config=merged.config)
    tokens = torch.arange(12)[None]
    assert not torch.equal(merged(tokens).logits, base(tokens).logits)
    assert torch.equal(merged.model.embed_tokens.weight, base.model.embed_tokens.weight)
    with_adapter = PeftModel.from_pretrained(base, folder / "adapter")
    torch.testing.assert_close(with_adapter(tokens).logits, merged(tokens).logits)
    assert not isinstance(trainer.model, PeftModel)


@pytest.mark.parametrize("targets", ["q_proj", ["q_proj"], r".*\.q_proj"])
def test_lora_goes_where_it_is_told(arguments, targets):
    trainer = set_up(arguments(lora_rank=4, lora_targets=targets))
    trained = [name for name, each in trainer.model.named_parameters() if each.requires_grad]
    assert trained
    assert all(".q_proj.lora_" in name for name in trained)


def test_a_control_runs_on_stock_attention(arguments):
    made = arguments(
        position_method="contiguous",
        kernels={"rope": False, "attention": False, "cross_entropy": False},
    )
    trainer = train(made)
    assert type(trainer.model.model).__mro__[0].__module__.startswith("transformers")
    assert trainer.state.global_step == 2


def test_anothers_attention_trains_the_same(arguments, tmp_path):
    """On skipped positions, evaluated at the target length too."""
    lost = []
    for attention in (True, "sdpa"):
        folder = str(tmp_path / str(attention))
        made = arguments(kernels={"attention": attention}, pack=False, output_dir=folder)
        trainer = train(made)
        steps = read_metrics(Path(folder) / "metrics.jsonl")
        lost.append([row["loss"] for row in steps if "loss" in row])
    assert len(lost[0]) > 0
    assert lost[1] == pytest.approx(lost[0], rel=1e-5)
    assert trainer.model.config._attn_implementation == "lrk_torch"


def test_an_attention_that_is_not_installed_shows_before_the_model_is_read(arguments, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_flash_attn_3_available", lambda: False)
    made = arguments(kernels={"attention": "flash_attention_3"}, model_name_or_path="nowhere")
    with pytest.raises(ValueError, match="transformers finds no package flash-attn-3 and a GPU"):
        set_up(made)


@pytest.fixture
def windowed(arguments, tmp_path, corpus):
    """Arguments with a window of 64 tokens, of a model that has a config and nothing else."""
    windows = {"max_position_embeddings": 512, "sliding_window": 64}
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    MistralConfig(**windows, **sizes, **heads).save_pretrained(tmp_path / "mistral")

    def make(attention, **changes):
        options = {
            "model_name_or_path": str(tmp_path / "mistral"),
            "kernels": {"attention": attention},
            "pack": False,
            "position_method": "contiguous",
            "dtype": "bfloat16",
            "eval_data": [str(corpus / "held_out" / "4.txt")],
        }
        return arguments(**options | changes)

    return make


SPREAD = {"position_method": "longrecipe", "eval_data": []}


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "eval_lengths is 256 with .*: keep eval_lengths within the window, take contiguous"),
        ({"eval_lengths": [32, 65]}, "eval_lengths is 65 with kernels.attention"),
        (SPREAD, "target_length is 256 with .* counts the model's sliding_window of 64 in tokens"),
        (
            {**SPREAD, "target_length": 64, "position_reach": 1.25},
            "position_reach times target_length is 80 with kernels.attention",
        ),
    ],
)
def test_a_window_of_positions_shows_before_the_weights_are_read(
    windowed, tokenizer, attention, changes, sentence
):
    """After all steps, or in the first, it would be too late."""
    made = windowed(attention, **changes)
    with pytest.raises(ValueError, match=sentence):
        check_attention_fits(made, load_config(made))
    with pytest.raises(ValueError, match=sentence):
        dry_run(made)
    model = MistralForCausalLM(load_config(made))
    with pytest.raises(ValueError, match=sentence):
        build_trainer(model, tokenizer, None, made)
    assert type(model) is MistralForCausalLM
    if attention == "sdpa":
        with pytest.raises(ValueError, match=sentence):
            set_up(made)
    lrk_runs = windowed(True, **changes)
    check_attention_fits(lrk_runs, load_config(lrk_runs))


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_sinks_show_before_the_weights_are_read(arguments, attention):
    config = AutoConfig.for_model("gpt_oss", sliding_window=None)
    made = arguments(kernels={"attention": attention}, pack=False, position_method="contiguous")
    with pytest.raises(ValueError, match=f"kernels.attention is '{attention}', which has no sinks"):
        check_attention_fits(made, config)
    check_attention_fits(arguments(), config)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
@pytest.mark.parametrize(
    "changes",
    [
        {"eval_lengths": [32, 64]},
        {"eval_position_method": "contiguous"},
        {"eval_data": []},
        {**SPREAD, "target_length": 64},
        {**SPREAD, "contiguous_share": 1.0},
    ],
)
def test_a_window_that_hides_the_same_is_no_reason(windowed, attention, changes):
    made = windowed(attention, **changes)
    check_attention_fits(made, load_config(made))


def test_samples_that_are_longer_than_a_window(windowed):
    lengths = {"train_length": 65, "target_length": 65}
    made = windowed("sdpa", **lengths)
    with pytest.raises(ValueError, match=r"train_length is 65 .* the model's sliding_window is 64"):
        check_attention_fits(made, load_config(made))
    made = windowed("flash_attention_2", **lengths)
    check_attention_fits(made, load_config(made))
    # Documents of a packed sample are spread one by one.
    made = windowed("flash_attention_2", **lengths, **SPREAD | {"pack": True})
    with pytest.raises(ValueError, match="target_length is 65 with kernels"):
        check_attention_fits(made, load_config(made))


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_weights_that_the_kernels_do_not_take(arguments, attention):
    made = arguments(kernels={"attention": attention}, pack=False, dtype="float32")
    config = load_config(made)
    check_attention_fits(made, config)
    made.use_cpu = False
    with pytest.raises(ValueError, match=f"'{attention}', whose kernels take .* are torch.float32"):
        check_attention_fits(made, config)
    made.bf16 = True
    check_attention_fits(made, config)


def test_a_packed_batch_is_its_documents_one_by_one(arguments, model_folder):
    """Loss of packed documents on contiguous positions = stock transformers, document by document.

    Trains nothing: it is about what the trainer feeds to the model.
    """
    trainer = set_up(arguments(position_method="contiguous", target_length=64))
    samples = trainer.train_dataset
    packed = [sample for sample in samples if len(sample["segment_lengths"]) > 1]
    batch = trainer.data_collator(packed)
    del batch["sample_indices"]  # the trainer's own
    documents = batch["cu_seq_lens_q"].tolist()
    assert len(documents) > len(packed) + 1

    stock = LlamaForCausalLM.from_pretrained(model_folder)
    tokens = batch["input_ids"].flatten()
    total, count = 0.0, 0
    with torch.no_grad():
        for start, end in itertools.pairwise(documents):
            document = tokens[None, start:end]
            if end - start > 1:
                total += float(stock(document, labels=document).loss) * (end - start - 1)
            count += end - start - 1
        loss = float(trainer.model(**batch).loss)
    assert count == int((batch["labels"] != -100).sum())
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_skipped_positions_are_one_document_and_packed_ones_are_apart(arguments):
    trainer = set_up(arguments(contiguous_share=0.0))
    trainer.model.eval()
    sample = next(
        sample
        for sample in trainer.train_dataset
        if len(sample["segment_lengths"]) > 1 and len(sample["segment_lengths"][0]) > 1
    )
    batch = trainer.data_collator([sample])
    del batch["labels"], batch["sample_indices"]
    boundary = int(batch["cu_seq_lens_q"][1])
    assert int(batch["position_ids"][0, boundary - 1]) > boundary, "the first document must skip"
    edited = {**batch, "input_ids": batch["input_ids"].clone()}
    edited["input_ids"][0, 0] += 1
    with torch.no_grad():
        change = (trainer.model(**batch).logits - trainer.model(**edited).logits).abs()[0].amax(-1)
    assert (change[:boundary] > 0).all()
    assert (change[boundary:] == 0).all()


def test_ready_parts_can_be_trained(arguments, tokenizer, model_folder):
    """The way the demo goes: model, tokenizer and documents are made by the caller."""
    from datasets import Dataset

    from lrk.recipe import tokenize

    documents = Dataset.from_dict({"text": ["The pass was closed. Nobody crossed it. " * 30]})
    samples = Samples(tokenize(documents, tokenizer), 32)
    model = LlamaForCausalLM.from_pretrained(model_folder)
    made = arguments(model_name_or_path=None, data=[])
    trainer = run(build_trainer(model, tokenizer, samples, made))
    assert trainer.model is model
    assert model.config.max_position_embeddings == 256
    lrk.unpatch(model)
    assert type(model) is LlamaForCausalLM
    with pytest.raises(ValueError, match="holds another run"):
        build_trainer(model, tokenizer, samples, made)


def test_a_model_card_of_somebody_else_is_left_alone(arguments):
    made = arguments(max_steps=1, report_to=["tensorboard"])
    folder = Path(made.output_dir)
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    train(made)
    assert (folder / "README.md").read_text() == "mine"
    assert list(folder.rglob("events.out.tfevents.*")), "report_to works as in transformers"


def test_only_what_the_assistant_says_is_trained_on(arguments, tmp_path, tokenizer, model_folder):
    turns = [
        {"role": "user", "content": "Was the pass closed all winter before spring?"},
        {"role": "assistant", "content": "Nobody crossed it. It was closed."},
    ]
    (tmp_path / "chat.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 8)
    template = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}<end>{% endfor %}"
    template += "{% if add_generation_prompt %}assistant:\n{% endif %}"
    instruct = tmp_path / "instruct"
    shutil.copytree(model_folder, instruct)
    (instruct / "chat_template.jinja").write_text(template)
    made = arguments(
        model_name_or_path=str(instruct),
        data=[str(tmp_path / "chat.jsonl")],
        position_method="contiguous",
        max_steps=1,
    )
    trainer = set_up(made)
    batch = trainer.data_collator(list(trainer.train_dataset))
    labels = batch["labels"].flatten()
    kept = tokenizer.decode(labels[labels != -100])
    assert kept.count("Nobody crossed it. It was closed") == 8
    assert "spring" not in kept
    assert "assistant" not in kept
    assert math.isfinite(run(trainer).state.log_history[0]["loss"])


def test_weights_that_the_files_lack_are_not_random_numbers(arguments, model_folder, tmp_path):
    """transformers makes them up, with a table among the warnings."""
    folder = shutil.copytree(model_folder, tmp_path / "lacking")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"], weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    sentence = r"has no tensor model.layers.1.mlp.up_proj.weight and 1 more, which its config asks"
    with pytest.raises(ValueError, match=sentence):
        set_up(arguments(model_name_or_path=str(folder)))

"""Runs that learn from a teacher, against their definition in float64, document by document."""

import copy
import json
import shutil
from itertools import pairwise
from pathlib import Path

import datasets
import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.import_utils import is_accelerate_available

import lrk
from lrk.hf.distillation import last_hidden
from lrk.train import LrkTrainer, LrkTrainingArguments, build_trainer, train
from lrk.train.distillation import (
    cut_start,
    ordinary_positions,
    short_length,
    with_short_documents,
)
from lrk.train.dry_run import dry_run
from lrk.train.model_card import model_card
from lrk.train.session import set_up
from lrk.train.telemetry import read_metrics
from studies.ranks import fsdp_on_cpu, run_ranks

VIEWS = {"distill": "views", "distill_weight": 0.7}
ORIGINAL = {"distill": "original", "distill_weight": 0.7, "distill_length": 12}
BOTH = {"views": VIEWS, "original": ORIGINAL}
LONGCE = {"token_loss": "longce", "longce_short_context": 24, "longce_short_stride": 8}


@pytest.fixture(scope="module")
def sharp(model_folder, tmp_path_factory) -> Path:
    """A model whose predictions depend on positions; those of small weights are nearly uniform."""
    folder = tmp_path_factory.mktemp("sharp")
    shutil.copytree(model_folder, folder, dirs_exist_ok=True)
    sharpened(AutoModelForCausalLM.from_pretrained(folder), 1).save_pretrained(folder)
    return folder


def sharpened(model, seed):
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def options(options, sharp):
    return options | {"model_name_or_path": str(sharp), "contiguous_share": 0.0}


def packed_batch(**others):
    """Two rows of 10 tokens: documents of 4 and 6 tokens, and of 10."""
    ends = torch.tensor([0, 4, 10, 20], dtype=torch.int32)
    tokens = torch.arange(2, 22).view(2, 10)
    return {
        "input_ids": tokens,
        "position_ids": tokens * 7,
        "labels": tokens.clone(),
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), ends),
        **dict.fromkeys(("max_length_q", "max_length_k"), 10),
        **others,
    }


def test_ordinary_positions_begin_with_each_document():
    found = ordinary_positions(packed_batch())
    assert found.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4, 5], list(range(10))]
    assert found.dtype == torch.int64


def test_short_documents_lie_behind_their_rows():
    weight = torch.rand(2, 10)
    batch = packed_batch(token_weight=weight, attention_temperature=2.0)
    whole, short = with_short_documents(batch, [2, 5], 5)
    assert short["input_ids"].tolist() == [[4, 5, 6, 7, 8], [17, 18, 19, 20, 21]]
    assert short["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert short["cu_seq_lens_q"].tolist() == [0, 2, 5, 10]
    assert (short["max_length_q"], short["max_length_k"]) == (5, 5)
    for name in ("input_ids", "position_ids"):
        assert torch.equal(whole[name], torch.cat([batch[name], short[name]], dim=1))
    assert torch.equal(whole["labels"][:, :10], batch["labels"])
    assert (whole["labels"][:, 10:] == -100).all()
    assert torch.equal(whole["token_weight"], functional.pad(weight, (0, 5)))
    assert whole["attention_temperature"] == 2.0
    # Rows of 15: documents of 4, 6, then 2 and 3; of 10, then 5.
    assert whole["cu_seq_lens_q"].tolist() == [0, 4, 10, 12, 15, 25, 30]
    assert whole["cu_seq_lens_k"].dtype == torch.int32
    assert whole["max_length_k"] == 10


def test_a_cut_as_long_as_its_row_and_a_function_of_losses():
    batch = packed_batch(token_weight=lambda losses: losses + 1)
    whole, short = with_short_documents(batch, [0, 0], 10)
    assert torch.equal(short["input_ids"], batch["input_ids"])
    assert short["cu_seq_lens_q"].tolist() == [0, 4, 10, 20]
    weighed = whole["token_weight"](torch.full((2, 20), 2.0))
    assert weighed.tolist() == [[3.0] * 10 + [0.0] * 10] * 2


def test_cuts_begin_everywhere_and_follow_from_the_step_and_the_sample():
    starts = [cut_start(0, step, 5, 3) for step in range(60)]
    assert set(starts) == {0, 1, 2, 3}
    assert starts == [cut_start(0, step, 5, 3) for step in range(60)]
    assert starts != [cut_start(0, step, 6, 3) for step in range(60)]
    assert starts != [cut_start(1, step, 5, 3) for step in range(60)]
    assert cut_start(0, 3, 5, 0) == 0


def test_the_length_of_a_short_context(arguments):
    made = arguments(distill="original")
    assert short_length(made, 64) == 32 // 4
    assert short_length(made, 5) == 5
    assert short_length(arguments(**ORIGINAL), 12) == 12
    with pytest.raises(ValueError, match="distill_length is 12; it must be at most the window of "
                                         "the model that the run starts from, 11"):  # fmt: skip
        short_length(arguments(**ORIGINAL), 11)


def distilled(arguments, **given) -> LrkTrainer:
    """A trainer on samples whose positions skip, of a model that is not its teacher any more."""
    trainer = set_up(arguments(**given))
    sharpened(trainer.model, 2)
    return trainer


def batch_of(trainer, indices):
    batch = trainer.data_collator([trainer.train_dataset[index] for index in indices])
    trainer._indices = indices
    return trainer._prepare_inputs(batch)


def in_float64(model):
    exact = lrk.unpatch(copy.deepcopy(model)).double()
    exact.set_attn_implementation("eager")
    return exact


def logits_of(exact, tokens, positions):
    """(S, V) of one document. The mask of ones keeps skips from being taken for documents."""
    ones = torch.ones_like(tokens)[None]
    return exact(tokens[None], position_ids=positions[None], attention_mask=ones).logits[0]


def divergence(student, teacher):
    log_q, log_p = student.log_softmax(-1), teacher.detach().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def assert_step_is(trainer, batch, exact, truth, apart):
    """The loss, its gradients, and what is logged of the divergence."""
    truth.backward()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(77))
    loss.backward()
    torch.testing.assert_close(loss.double(), truth.detach(), rtol=1e-4, atol=0)
    torch.testing.assert_close(trainer._divergence.double(), apart.detach(), rtol=1e-4, atol=0)
    for ours, direct in zip(trainer.model.parameters(), exact.parameters(), strict=True):
        scale = direct.grad.abs().max().item()
        torch.testing.assert_close(ours.grad.double(), direct.grad, rtol=0, atol=2e-3 * scale)


def test_views_are_their_definition(arguments):
    trainer = distilled(arguments, **VIEWS)
    batch = batch_of(trainer, [0, len(trainer.train_dataset) - 1])
    ends = batch["cu_seq_lens_q"].tolist()
    assert len(ends) > 3, "one of the samples is packed"
    exact = in_float64(trainer.model)
    total, apart = 0.0, 0.0
    tokens, positions = batch["input_ids"].flatten(), batch["position_ids"].flatten()
    for begin, end in pairwise(ends):
        student = logits_of(exact, tokens[begin:end], positions[begin:end])[:-1]
        teacher = logits_of(exact, tokens[begin:end], torch.arange(end - begin))[:-1]
        total = total + functional.cross_entropy(student, tokens[begin + 1 : end], reduction="sum")
        apart = apart + divergence(student, teacher).sum()
    assert apart > 1
    assert_step_is(trainer, batch, exact, (total + 0.7 * apart) / 77, apart / 77)


def test_the_original_is_its_definition(arguments, sharp):
    trainer = distilled(arguments, **ORIGINAL)
    assert trainer.model.config.rope_parameters != trainer.teacher.config.rope_parameters
    batch = batch_of(trainer, [0, len(trainer.train_dataset) - 1])
    exact = in_float64(trainer.model)
    original = in_float64(AutoModelForCausalLM.from_pretrained(sharp))
    total, apart = 0.0, 0.0
    tokens, positions = batch["input_ids"].flatten(), batch["position_ids"].flatten()
    ends = batch["cu_seq_lens_q"].tolist()
    for begin, end in pairwise(ends):
        student = logits_of(exact, tokens[begin:end], positions[begin:end])[:-1]
        total = total + functional.cross_entropy(student, tokens[begin + 1 : end], reduction="sum")
    lengths = []
    for row, index in enumerate(trainer._indices):
        start = 32 * row + cut_start(trainer.args.seed, 0, index, 32 - 12)
        inside = [end for end in ends if start < end < start + 12]
        for begin, end in pairwise([start, *inside, start + 12]):
            places = torch.arange(end - begin)
            student = logits_of(exact, tokens[begin:end], places)
            apart = (
                apart + divergence(student, logits_of(original, tokens[begin:end], places)).sum()
            )
            lengths.append(end - begin)
    assert sum(lengths) == 24
    assert_step_is(trainer, batch, exact, (total + 0.7 * apart) / 77, apart / 77)


@pytest.mark.parametrize("given", BOTH.values(), ids=BOTH)
def test_the_temperature_is_the_students_alone(arguments, given):
    trainer = distilled(arguments, **given)
    batch = batch_of(trainer, [0])
    plain, warm = (
        trainer._with_teacher(trainer.model, {**batch, **more})
        for more in ({}, {"attention_temperature": 3.0})
    )
    assert torch.equal(plain["distillation"].hidden, warm["distillation"].hidden)
    assert warm["attention_temperature"] == 3.0


def test_a_teacher_has_no_dropout(arguments):
    trainer = set_up(arguments(**VIEWS, lora_rank=2, lora_dropout=0.5))
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model, batch = trainer.model.train(), batch_of(trainer, [0])
    read = {name: batch[name] for name in ("input_ids", "position_ids", "cu_seq_lens_q")}
    assert torch.equal(last_hidden(model, read), last_hidden(model, read))
    assert model.training
    rows = [model(**read, output_last_hidden=True).last_hidden_state for _ in range(2)]
    assert not torch.equal(*rows)


@pytest.mark.parametrize("loss", ["plain", "longce"])
@pytest.mark.parametrize("given", BOTH.values(), ids=BOTH)
def test_accumulated_steps_equal_one_large_batch(arguments, given, loss, tmp_path):
    found, logged = [], []
    for accumulation in (1, 2):
        trainer = train(
            arguments(
                **given,
                **(LONGCE if loss == "longce" else {}),
                per_device_train_batch_size=2 // accumulation,
                gradient_accumulation_steps=accumulation,
                output_dir=str(tmp_path / str(accumulation)),
                optim="sgd",
                learning_rate=0.1,
            )
        )
        found.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        logged.append([row["distill_divergence"] for row in trainer.state.log_history[:2]])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)
    assert min(logged[0]) > 1e-2


def test_what_is_logged_is_the_mean_of_a_step_and_evaluation_is_plain(arguments, corpus, tmp_path):
    held_out = {"eval_data": [str(corpus / "held_out")], "learning_rate": 0.0, "max_steps": 4}
    plain, each, mean = (
        train(arguments(**held_out, **given, output_dir=str(tmp_path / name)))
        for name, given in (
            ("plain", {}),
            ("each", VIEWS),
            ("mean", {**VIEWS, "logging_steps": 2}),
        )
    )
    rows = [
        [row for row in read_metrics(Path(one.args.output_dir) / "metrics.jsonl") if "loss" in row]
        for one in (plain, each, mean)
    ]
    assert [len(found) for found in rows] == [4, 4, 2]
    for before, after in zip(rows[0], rows[1], strict=True):
        expected = before["loss"] + 0.7 * after["distill_divergence"]
        assert after["loss"] == pytest.approx(expected, rel=1e-5)
        assert "distill_divergence" not in before
    for number, row in enumerate(rows[2]):
        pair = [one["distill_divergence"] for one in rows[1][2 * number : 2 * number + 2]]
        assert row["distill_divergence"] == pytest.approx(sum(pair) / 2, rel=1e-5)
    evaluations = [one.state.log_history[-1]["eval_256_loss"] for one in (plain, each)]
    assert evaluations[0] == evaluations[1]


def test_a_step_that_did_not_fit_is_not_logged(arguments, monkeypatch, tmp_path):
    """Its second micro-batch does not, and `auto_find_batch_size` begins it again."""
    run = {**VIEWS, "gradient_accumulation_steps": 2, "max_steps": 1}
    expected = train(arguments(**run, output_dir=str(tmp_path / "whole"))).state.log_history[0]
    step, calls = LrkTrainer.compute_loss, []

    def compute_loss(self, *args, **kwargs):
        calls.append(self.state.global_step)
        if len(calls) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(LrkTrainer, "compute_loss", compute_loss)
    larger = run | {"per_device_train_batch_size": 2, "auto_find_batch_size": True}
    found = train(arguments(**larger, output_dir=str(tmp_path / "again"))).state.log_history[0]
    assert calls == [0] * 4
    assert found["distill_divergence"] == pytest.approx(expected["distill_divergence"], rel=1e-5)


LEAN = {"tile_tokens": 16, "gradient_checkpointing": True, "offload_activations": True}
WAYS = {
    "less memory": LEAN,
    "the step in the backward pass": {"optimizer_in_backward": True},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
}


@pytest.mark.parametrize("given", BOTH.values(), ids=BOTH)
def test_other_ways_of_the_same_run(arguments, given, tmp_path):
    found = {}
    for name, way in ({"plain": {}} | WAYS).items():
        run = {"max_grad_norm": 0, "optim": "sgd", "learning_rate": 0.1, "max_steps": 1}
        trainer = train(arguments(**given, **run, **way, output_dir=str(tmp_path / name)))
        found[name] = trainer.state.log_history[0]
        # Neither in the optimizer, nor in what is saved.
        held = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
        assert held == len(list(trainer.model.parameters()))
        assert not any("teacher" in key for key in trainer.model.state_dict())
    for name in WAYS:
        for key in ("loss", "distill_divergence"):
            assert found[name][key] == pytest.approx(found["plain"][key], rel=1e-5), (name, key)


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("given", BOTH.values(), ids=BOTH)
def test_a_resumed_run_ends_with_the_same_weights(arguments, given, lora_rank, tmp_path):
    run = {
        **given,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "lora_rank": lora_rank,
        "lr_scheduler_type": "constant",
    }
    whole, part = str(tmp_path / "whole"), str(tmp_path / "part")
    expected = train(arguments(**run, output_dir=whole))
    train(arguments(**run | {"max_steps": 2}, output_dir=part))
    found = train(arguments(**run, output_dir=part, resume_from_checkpoint="true"))
    for ours, theirs in zip(
        found.model.state_dict().values(), expected.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    rows = [one.state.log_history[3]["distill_divergence"] for one in (expected, found)]
    assert rows[0] == rows[1]
    manifest = json.loads((tmp_path / "part" / "checkpoint-4" / "manifest.json").read_text())
    assert manifest["run"]["distill"] == given["distill"]
    other = run | {"distill_weight": 0.5, "output_dir": part, "resume_from_checkpoint": "true"}
    with pytest.raises(ValueError, match=r"of a run with distill_weight 0\.7, which is 0\.5 now"):
        train(arguments(**other))


def history(options, cache):
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()
    with fsdp_on_cpu():
        rows = train(LrkTrainingArguments(**options)).state.log_history
    names = ("loss", "grad_norm", "distill_divergence")
    return torch.tensor([[row[name] for name in names] for row in rows if "grad_norm" in row])


@pytest.mark.parametrize(
    ("given", "ranks"),
    [
        (VIEWS, {}),
        (ORIGINAL, {}),
        (VIEWS, {"fsdp": True}),
        pytest.param(
            *(VIEWS, {"sequence_parallel": 2}),
            marks=pytest.mark.skipif(
                not is_accelerate_available("1.12.0"), reason="sequence_parallel needs it"
            ),
        ),
    ],
    ids=["views, DDP", "original, DDP", "views, FSDP2", "views, samples shared"],
)
def test_processes_make_the_same_run(options, tmp_path, given, ranks):
    run = {**options, **given, "max_steps": 3}
    cache = datasets.config.HF_DATASETS_CACHE
    shares = "sequence_parallel" in ranks
    alone = history({**run, "per_device_train_batch_size": 1 if shares else 2}, cache)
    spread = {**run, **ranks, "output_dir": str(tmp_path / "spread")}
    for found in run_ranks(history, 2, spread, cache):
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=0)
    assert (alone[:, 2] > 1e-2).all()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"distill": "view"}, "distill 'view' is unknown; .* did you mean 'views'"),
        ({"distill_weight": 0.5}, "distill_weight is 0.5 with distill 'none'; it is for a teacher"),
        ({"distill_length": 8}, "distill_length is 8 with distill 'none'; it belongs to"),
        ({**VIEWS, "distill_length": 8}, "distill_length is 8 with distill 'views'; it belongs"),
        ({**VIEWS, "distill_weight": 0.0}, r"distill_weight is 0\.0; it must be positive"),
        ({**VIEWS, "kernels": {"cross_entropy": False}},
            "distill is 'views' with kernels.cross_entropy false; the loss of transformers knows"),
        ({**VIEWS, "position_method": "contiguous"}, "distill is 'views' with position_method "
            "'contiguous'; .* its two views are the same"),
        ({**VIEWS, "contiguous_share": 1.0}, r"distill is 'views' with contiguous_share 1; "),
        ({**ORIGINAL, "distill_length": 33}, "distill_length is 33; .* at most train_length 32"),
        ({**ORIGINAL, "distill_length": 0}, "distill_length is 0; it must be at least 1"),
        ({**ORIGINAL, "attention_temperature": 1.2}, "distill is 'original' with "
            "attention_temperature 1.2; the model would be compared"),
        ({**ORIGINAL, "kernels": {"attention": "sdpa"}, "pack": False},
            "distill is 'original' with kernels.attention 'sdpa', which knows no documents"),
        ({**ORIGINAL, "kernels": {"attention": False}, "position_method": "contiguous",
            "target_length": 32}, "distill is 'original' with kernels.attention False, which"),
    ],
)  # fmt: skip
def test_what_no_run_can_have(arguments, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        arguments(**given)


def test_a_second_model_of_4_bits_is_refused(arguments, monkeypatch):
    monkeypatch.setattr("lrk.train.arguments.lora.is_bitsandbytes_available", lambda: True)
    arguments(**VIEWS, lora_rank=2, load_in_4bit=True)
    with pytest.raises(ValueError, match="distill is 'original' with load_in_4bit true; of wei"):
        arguments(**ORIGINAL, lora_rank=2, load_in_4bit=True)


def test_a_short_context_beyond_the_window_is_refused_before_weights_are_read(
    arguments, monkeypatch
):
    monkeypatch.delattr("lrk.train.session.load_model")
    made = arguments(**ORIGINAL | {"distill_length": 65}, train_length=128)
    with pytest.raises(ValueError, match=r"distill_length is 65; .* starts from, 64, in which"):
        set_up(made)


def test_a_trainer_without_a_teacher(arguments, tokenizer, model_folder):
    made = arguments(**ORIGINAL)
    samples = set_up(made).train_dataset
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    trainer = build_trainer(model, tokenizer, samples, made)
    assert not any(each.requires_grad for each in trainer.teacher.parameters())
    trainer.teacher = None
    with pytest.raises(ValueError, match="distill is 'original', but the trainer has no teacher"):
        trainer.train()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (VIEWS, "the model in ordinary positions, weight 0.7"),
        (ORIGINAL, "the model before the run, on 12 tokens of each sample, weight 0.7"),
    ],
)
def test_the_plan_and_the_model_card_say_who_teaches(arguments, sharp, given, said):
    made = arguments(**given)
    text = dry_run(made)
    assert f"  teacher          {said}\n" in text
    assert "Self-distillation: " in text
    assert "teacher " in text.split("  each phase  ")[1].splitlines()[0]
    card = model_card(made, AutoConfig.from_pretrained(sharp), [{"step": 1, "loss": 2.0}], None)
    assert f"| self-distillation | {given['distill']}, weight 0.7 |\n" in card
    assert "| training, with the divergence from the teacher | 2.0000 (step 1)" in card
    plain = dry_run(arguments(output_dir=f"{made.output_dir}-plain"))
    assert "teacher" not in plain.split("distill_weight")[1]


def test_a_dry_run_refuses_a_short_context_beyond_the_window(arguments):
    with pytest.raises(ValueError, match="distill_length is 65; it must be at most the window of"):
        dry_run(arguments(**ORIGINAL | {"distill_length": 65}, train_length=128))


def test_views_of_weights_of_4_bits(arguments):
    pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes")
    trainer = train(arguments(**VIEWS, lora_rank=2, load_in_4bit=True))
    assert all(row["distill_divergence"] > 1e-2 for row in trainer.state.log_history[:2])

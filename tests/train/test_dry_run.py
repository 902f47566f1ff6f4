"""What `--dry_run` says of steps, positions and memory; test_command.py has the rest of it."""

import re

import pytest
import torch
from transformers import LlamaForCausalLM

from lrk.hf import patch
from lrk.plan.gpus import GPUS, Gpu
from lrk.plan.ledger import Ledger
from lrk.plan.prices import prices_on
from lrk.plan.settings import LRK
from lrk.plan.workspace import Device
from lrk.train import train
from lrk.train.disk_space import checkpoint_interval
from lrk.train.dry_run import dry_run
from lrk.train.longce import short_losses
from lrk.train.planned_step import device_of, plan_settings, planned_step
from lrk.train.pretrained import load_config


def test_a_prompt_counts_as_tokens_of_a_step(arguments):
    said = dry_run(
        arguments(
            position_method="endprompt",
            end_prompt="Nobody crossed it.",
            contiguous_share=0.0,
            gradient_accumulation_steps=3,
        )
    )
    assert "of 32 tokens" in said
    assert "a step           3 samples, 96 tokens" in said
    assert "steps            2, 192 tokens in all" in said
    assert "last position    255 on average" in said


def test_what_the_released_longrecipe_draws_has_a_name(arguments):
    said = dry_run(arguments(position_method="longrecipe_released", contiguous_share=0.0))
    assert "positions        longrecipe_released; of the first" in said


def test_qlora_is_planned(arguments):
    pytest.importorskip("bitsandbytes")
    made = arguments(load_in_4bit=True, lora_rank=4, bf16=True, optim="adamw_torch")
    settings = plan_settings(made, load_config(made), LRK, "adamw_torch", "cpu")
    assert (settings.load_in_4bit, settings.lora_rank, settings.bf16) == (True, 4, True)
    assert "LoRA of rank 4 on 4 bits" in dry_run(made)


def test_adapters_that_are_planned_otherwise_are_named(arguments):
    line = "planned on all linear layers and without their dropout"
    assert line in dry_run(arguments(lora_rank=4, lora_targets=["q_proj"]))
    assert line not in dry_run(arguments(lora_rank=4))


def test_the_passes_of_longce_are_named(arguments):
    """256 tokens have 11 contexts of 64 + 16, from 16, 32, ... 176."""
    options = {"longce_short_context": 64, "longce_short_stride": 16, "train_length": 256}
    said = dry_run(arguments(token_loss="longce", position_method="contiguous", **options))
    assert "  peak  " in said
    assert "not in it        token_loss longce first runs the model" in said
    assert f"{11 * 80 / 256:.2f} times the tokens" in said
    assert "not in it" not in dry_run(arguments())


def test_the_passes_of_longce_need_less_memory_than_the_step(model_folder):
    """As `--dry_run` says: on real tensors, with as many tokens as the step has."""
    model = patch(LlamaForCausalLM.from_pretrained(model_folder)).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    ends = torch.tensor([0, 256], dtype=torch.int32)
    batch = {
        "input_ids": torch.randint(320, (1, 256)),
        "position_ids": torch.arange(256)[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
    }
    batch["labels"] = batch["input_ids"]

    def peak(compute):
        ledger = Ledger(prices_on(Device("cpu", 1)))
        with ledger:
            result = compute()
        del result
        return max(usage.total for usage in ledger.usage())

    passes = peak(lambda: short_losses(model, batch, 64, 16))
    assert 0 < passes < peak(lambda: model(**batch, use_cache=False).loss)


def group(said: str, title: str) -> str:
    """The lines of a group, whose title begins so."""
    (found,) = (lines for lines in said.split("\n\n") if lines.startswith(title))
    return found


def test_the_window_and_the_base_before_and_after(arguments):
    said = group(dry_run(arguments()), "Model")
    assert "window           64 -> 256 tokens, 4 times\n" in said
    assert "RoPE             default, base 10,000 -> default, base 305,674, by rope_" in said


def test_a_window_that_is_there_extends_nothing(arguments):
    said = group(dry_run(arguments(target_length=64, train_length=32)), "Model")
    assert "window           64 tokens, which it has already: target_length 64 extends not" in said
    assert "RoPE             default, base 10,000: the model's own, not scaled\n" in said


@pytest.mark.parametrize(("max_steps", "warns"), [(1, False), (400, True)])
def test_passes_over_the_data(arguments, max_steps, warns):
    said = group(
        dry_run(arguments(max_steps=max_steps, gradient_accumulation_steps=10)), "Token plan"
    )
    count = int(re.search(r"samples +(\d+) of 32 tokens", said)[1])
    passes = max_steps * 10 / count
    told = f"{passes:,.0f} over the same samples: bey" if warns else f"{passes:.2g} over the samp"
    assert f"  passes           {told}" in said
    assert ("give more data, or fewer steps" in said) == warns


def test_what_it_needs_and_costs_on_a_gpu(arguments, corpus):
    """Seconds are those of the planner: of a micro-batch, so many a step."""
    chosen = {
        "gradient_accumulation_steps": 3,
        "max_steps": 10**9,
        "eval_data": [str(corpus / "held_out")],
        "eval_strategy": "steps",
        "eval_steps": 3 * 10**8,
        "gpu": "l40s",
        "dollars_per_hour": 1.5,
    }
    made = arguments(**chosen)
    said = dry_run(made)
    assert "fits             yes: l40s has 44.4 GiB, the step needs" in group(said, "Memory")
    cost = group(said, "Time and price on one l40s at 40% of its published peak: predicted")
    step = planned_step(made, load_config(made), device_of(made)).plan
    hours = 3 * 10**9 * step.estimate()["seconds"] / 3600
    assert "a step           less than 0.1 s\n" in cost
    assert f"training         {hours * 60:,.1f} minutes for 1,000,000,000 steps" in cost
    price = re.search(r"price +([0-9.]+) dollars: ([0-9.]+) GPU hours at 1.50", cost)
    assert float(price[2]) == pytest.approx(hours, abs=0.01)  # evaluations are few
    assert float(price[1]) == pytest.approx(1.5 * float(price[2]), abs=0.02)
    rest = group(said, "Evaluation and disk")
    assert "at 32, 256; 4 times in the run and of the untouched model\n" in rest
    assert "checkpoints      none\n" in rest


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"eval_strategy": "epoch"},
        {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2},
        {"eval_strategy": "steps", "eval_steps": 0.5},
    ],
)
def test_how_often_a_run_evaluates(arguments, corpus, changes):
    made = arguments(
        eval_data=[str(corpus / "held_out")],
        eval_samples=1,
        **{"train_length": 128, "max_steps": 11, "gradient_accumulation_steps": 2} | changes,
    )
    said = re.search(r"; (once|\d+ times) in the run and of the untouched model", dry_run(made))
    times = 1 if said[1] == "once" else int(said[1].partition(" ")[0])
    history = train(made).state.log_history
    assert len([row for row in history if "eval_128_loss" in row]) == times + 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"save_strategy": "steps", "save_steps": 26, "save_minutes": 30}, "every 26 steps and ev"),
        ({"save_strategy": "steps", "save_steps": 0.25}, "every 25% of the run; all are kept"),
        ({"save_strategy": "epoch", "save_total_limit": 2}, "every epoch; the newest 2 are kept"),
    ],
)
def test_when_checkpoints_are_written(arguments, changes, said):
    assert said in checkpoint_interval(arguments(**changes))


def test_a_step_that_does_not_fit_is_said_not_to(arguments, monkeypatch):
    small = Gpu(1e12, 0.5, 1e9)
    monkeypatch.setitem(GPUS, "l40s", small)
    said = group(dry_run(arguments(gpu="l40s")), "Memory of a step")
    assert "fits             NO: l40s has 0.5 GiB, the step needs 0.8" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_without_a_gpu_it_says_what_is_needed(arguments):
    said = group(dry_run(arguments()), "Memory of a step")
    assert (
        "fits             a GPU of 0.8 GiB, with 5% slack and 0.75 GiB of context, assumed" in said
    )
    assert "of the known ones h100, h200, b200, a100, a100-40gb, l40s, rtx4090" in said
    with pytest.raises(ValueError, match="gpu 'h10' is unknown; it must be one of"):
        arguments(gpu="h10")
    with pytest.raises(ValueError, match=r"dollars_per_hour is -1\.0; it must be positive"):
        arguments(dollars_per_hour=-1)

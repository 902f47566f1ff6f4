"""What `--dry_run` says of steps, positions and memory; test_command.py has the rest of it."""

import pytest
import torch
from transformers import LlamaForCausalLM

from lrk.hf import patch
from lrk.plan.ledger import Ledger
from lrk.plan.prices import prices_on
from lrk.plan.settings import LRK
from lrk.plan.workspace import Device
from lrk.train.dry_run import dry_run, plan_settings
from lrk.train.longce import short_losses
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
    settings = plan_settings(made, load_config(made), LRK, "adamw_torch")
    assert (settings.load_in_4bit, settings.lora_rank, settings.bf16) == (True, 4, True)
    assert "LoRA of rank 4 on 4 bits" in dry_run(made)


def test_adapters_that_are_planned_otherwise_are_named(arguments):
    line = "Planned for adapters on all linear layers and without their dropout"
    assert line in dry_run(arguments(lora_rank=4, lora_targets=["q_proj"]))
    assert line not in dry_run(arguments(lora_rank=4))


def test_the_passes_of_longce_are_named(arguments):
    """256 tokens have 11 contexts of 64 + 16, from 16, 32, ... 176."""
    options = {"longce_short_context": 64, "longce_short_stride": 16, "train_length": 256}
    said = dry_run(arguments(token_loss="longce", position_method="contiguous", **options))
    assert "Peak" in said
    assert "Not in the FLOPs and times: token_loss longce" in said
    assert f"{11 * 80 / 256:.2f} times the tokens of a sample" in said
    assert "Not in the FLOPs" not in dry_run(arguments())


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

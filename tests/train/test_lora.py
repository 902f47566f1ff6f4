"""Adapters, and modules that are trained whole beside them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from lrk.train import train
from lrk.train.dry_run import dry_run
from lrk.train.session import set_up

WHOLE = {"lora_rank": 4, "lora_modules_to_save": ["embed_tokens", "norm"]}
IDS = torch.arange(12)[None]


@pytest.fixture
def tied(model_folder, tmp_path, tokenizer) -> str:
    folder = tmp_path / "tied"
    config = AutoConfig.from_pretrained(model_folder)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("is_tied", [False, True])
def test_embeddings_and_norms_are_trained_saved_and_merged(arguments, model_folder, tied, is_tied):
    start = tied if is_tied else str(model_folder)
    made = arguments(**WHOLE, model_name_or_path=start, max_steps=4)
    trainer = set_up(made)
    whole = [n for n, p in trainer.model.named_parameters() if p.requires_grad and "lora" not in n]
    assert len(whole) == 1 + 2 * 2 + 1, "embeddings, two norms a layer, the last norm"
    trainer.train()
    trainer.model.eval()
    with torch.no_grad():
        trained = trainer.model(IDS).logits
    shutil.rmtree(made.output_dir, ignore_errors=True)

    train(made)
    folder = Path(made.output_dir)
    merged = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(merged(IDS).logits, trained)
    base = LlamaForCausalLM.from_pretrained(start)
    for name in ("embed_tokens", "norm"):
        ours, theirs = (getattr(each.model, name).weight for each in (merged, base))
        assert not torch.equal(ours, theirs)
    assert merged.lm_head.weight.equal(base.lm_head.weight)
    base = LlamaForCausalLM.from_pretrained(start, config=AutoConfig.from_pretrained(folder))
    if not is_tied:
        with_adapter = PeftModel.from_pretrained(base, folder / "adapter")
        torch.testing.assert_close(with_adapter(IDS).logits, trained)


def test_a_resumed_run_ends_with_the_same_weights(arguments, tmp_path):
    options = WHOLE | {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    one = train(arguments(**options, output_dir=str(straight)))
    shutil.copytree(straight / "checkpoint-2", resumed / "checkpoint-2")
    other = train(arguments(**options, output_dir=str(resumed), resume_from_checkpoint="true"))
    theirs = other.model.state_dict()
    assert all(torch.equal(each, theirs[name]) for name, each in one.model.state_dict().items())


def test_they_are_planned(arguments):
    """Weights once more, and gradients."""
    assert "LoRA of rank 4," in dry_run(arguments(lora_rank=4))
    assert "LoRA of rank 4 and embed_tokens and norm," in dry_run(arguments(**WHOLE))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lora_modules_to_save": ["embedding"]}, "lora_modules_to_save has 'embedding', with"),
        ({"lora_targets": ["q_prj"]}, "'q_prj'.* not found in the base model"),
        ({"lora_rank": 0, "lora_modules_to_save": ["norm"]}, "with lora_rank 0"),
    ],
)
def test_names_that_the_model_has_not_show_before_weights_and_data(arguments, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        set_up(arguments(**{"lora_rank": 4, "data": ["nowhere"], **changes}))


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_tied_embeddings_cannot_be_merged(arguments, tied, target):
    """peft would add it to both uses of the weight: logits off by 2.4 and 159 times their size."""
    made = arguments(lora_rank=4, lora_targets=[target], model_name_or_path=tied)
    with pytest.raises(ValueError, match="embeddings that are tied to the head"):
        set_up(made)
    with pytest.raises(ValueError, match="embeddings that are tied to the head"):
        dry_run(made)


def test_the_saved_config_of_untied_embeddings_says_so(arguments, tied):
    made = arguments(**WHOLE, model_name_or_path=tied)
    train(made)
    config = json.loads((Path(made.output_dir) / "config.json").read_text())
    assert config["tie_word_embeddings"] is False

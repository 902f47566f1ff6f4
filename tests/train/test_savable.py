"""What only saving would refuse shows before the first step."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from lrk.train import train
from lrk.train.session import set_up


@pytest.fixture
def model(model_folder, tmp_path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def test_flags_of_sampling_without_sampling_are_saved(arguments, model):
    """As Llama 2 came; a pad token that the config lacks makes transformers write it anew."""
    content = {"eos_token_id": 0, "temperature": 0.9, "top_p": 0.6}
    (model / "generation_config.json").write_text(json.dumps(content))
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    tokenizer["pad_token"] = "<end>"
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    trainer = train(arguments(model_name_or_path=str(model)))
    saved = GenerationConfig.from_pretrained(trainer.args.output_dir)
    assert (saved.do_sample, saved.temperature, saved.top_p) == (True, 0.9, 0.6)
    assert AutoConfig.from_pretrained(trainer.args.output_dir).pad_token_id == 0


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("config", LlamaConfig),
        ("generation config", GenerationConfig),
        ("tokenizer", PreTrainedTokenizerFast),
    ],
)
@pytest.mark.parametrize("error", [ValueError, TypeError, AttributeError, OSError])
def test_what_cannot_be_saved_is_refused_before_the_first_step(
    arguments, monkeypatch, part, kind, error
):
    def fails(self, *args, **kwargs):
        raise error("no such\nfile")

    monkeypatch.setattr(kind, "save_pretrained", fails)
    with pytest.raises(ValueError, match=f"the {part} of .* cannot be saved: no such file"):
        set_up(arguments())


def test_the_hub_is_asked_before_the_data_are_read(arguments, monkeypatch):
    asked = []

    def refuses(name, **options):
        asked.append((name, options["private"]))
        raise OSError("401 Client Error.\n\nInvalid username or password.")

    monkeypatch.setattr("lrk.train.savable.create_repo", refuses)
    made = arguments(push_to_hub=True, hub_private_repo=True, data=["nowhere"])
    sentence = "the repository 'run' cannot be made: 401 Client Error"
    with pytest.raises(ValueError, match=sentence):
        set_up(made)
    assert asked == [("run", True)]

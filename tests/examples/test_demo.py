import json

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from examples import demo, standard_library
from lrk.recipe import Samples

DOCUMENTS = 3


@pytest.fixture
def samples() -> Samples:
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(50, (DOCUMENTS, demo.SAMPLE), generator=generator).tolist()
    rows = {"input_ids": token_ids, "segment_lengths": [[64] * 16] * DOCUMENTS}
    return Samples(Dataset.from_dict(rows), demo.SAMPLE, pack=False)


def test_no_held_out_file_is_trained_on():
    held_out = standard_library.held_out_documents()["text"]
    assert len(set(held_out)) == 16
    training = standard_library.training_documents()["text"]
    assert len(training) > 200
    assert not set(training) & set(held_out)


def test_evaluation_measures_the_second_half_at_every_length(samples):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=demo.TARGET,
        initializer_range=0.5,
    )
    model = LlamaForCausalLM(config)
    losses = demo.evaluate(model, samples, demo.LENGTHS, "tiny")
    assert list(losses) == list(demo.LENGTHS)
    assert len(set(losses.values())) == len(demo.LENGTHS)
    # At the shortest length positions are contiguous: stock transformers computes the same.
    expected = []
    for i in range(len(samples)):
        token_ids = samples[i]["input_ids"][None]
        labels = token_ids.clone()
        labels[:, : demo.SAMPLE // 2] = -100
        with torch.no_grad():
            expected.append(model(token_ids, labels=labels).loss.item())
    assert losses[demo.SAMPLE] == pytest.approx(sum(expected) / DOCUMENTS, rel=1e-5)


def test_report_and_picture(tmp_path, capsys):
    names = ("untouched", "theta rescaled", "control", "trained")
    losses = {name: dict.fromkeys(demo.LENGTHS, 2.0) for name in names}
    losses["trained"][demo.TARGET] = 2.25
    del losses["untouched"][8_192]
    demo.report(losses, tmp_path)
    demo.draw(losses, tmp_path / "loss.png")
    assert "trained at 131,072: +0.250 nats" in capsys.readouterr().out
    assert json.loads((tmp_path / "loss.json").read_text())["trained"]["131072"] == 2.25
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"

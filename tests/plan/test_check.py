"""The plan against the CPU allocator's record of a real step."""

import pytest

from lrk.plan import Settings
from lrk.plan.check import TECHNIQUES, compare, settings_of


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_plan_is_what_the_allocator_records(config, technique):
    settings = settings_of(technique, length=160, gpu="cpu")
    if settings.load_in_4bit:
        pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes")
    assert abs(compare("tiny", config, settings).error) < 0.05


def test_extrapolated_plan(config):
    config.num_hidden_layers = 6
    settings = settings_of("lrk", length=160, gpu="cpu")
    assert abs(compare("tiny", config, settings).error) < 0.05


def test_tied_embeddings(config):
    """Their gradient is the sum of two, added in place."""
    config.tie_word_embeddings = True
    config.vocab_size = 4000
    settings = Settings(length=32, dtype="float32", optim="adamw_torch_fused", gpu="cpu")
    assert abs(compare("tiny", config, settings).error) < 0.02

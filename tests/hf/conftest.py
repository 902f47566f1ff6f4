import copy
import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import (
    MistralForCausalLM,
    MistralRotaryEmbedding,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from bench.support_matrix import PACKAGES
from lrk.versions import installed_version

VOCABULARY = 61
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Large enough for attention that is far from uniform.
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
# What the support matrix says of the environment that a report comes from.
STACK = [
    ("Python", platform.python_version()),
    *((name, str(installed_version(name))) for name in PACKAGES),
]
MODELS = {
    "llama": lambda shape: LlamaForCausalLM(LlamaConfig(**shape)),
    "mistral": lambda shape: MistralForCausalLM(
        MistralConfig(**shape, head_dim=8, sliding_window=None)
    ),
    "mistral with a window": lambda shape: MistralForCausalLM(
        MistralConfig(**shape, head_dim=8, sliding_window=7)
    ),
    "qwen2": lambda shape: Qwen2ForCausalLM(Qwen2Config(**shape)),
    "qwen2 with windows in some layers": lambda shape: Qwen2ForCausalLM(
        Qwen2Config(**shape, use_sliding_window=True, sliding_window=7, max_window_layers=1)
    ),
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "support(feature): a row of docs/support.md, made by bench/support_matrix.py"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what the support matrix needs into the report of `--junitxml`."""
    for item in items:
        marker = item.get_closest_marker("support")
        if marker is not None:
            model = item.callspec.params.get("stock", "llama") if hasattr(item, "callspec") else ""
            item.user_properties += [
                ("feature", marker.args[0]),
                ("model", model or "llama"),
                *STACK,
            ]


@pytest.fixture
def shape() -> dict[str, Any]:
    """Of the stock models."""
    return SHAPE


@pytest.fixture(params=sorted(MODELS))
def stock(request, shape) -> PreTrainedModel:
    """A tiny model of transformers with random weights, float32, in training mode."""
    torch.manual_seed(0)
    return MODELS[request.param](shape).train()


@pytest.fixture
def llama(shape) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS["llama"](shape).train()


@pytest.fixture
def checkpointed() -> Callable[..., PreTrainedModel]:
    """Switch gradient checkpointing on, by the name that this release of transformers has."""

    def switch_on(model: PreTrainedModel, **options) -> PreTrainedModel:
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)(options or None)
        return model.train()

    return switch_on


@pytest.fixture
def in_float64() -> Callable[[PreTrainedModel], PreTrainedModel]:
    """A copy of a stock model that computes everything in float64, its rotary angles too."""

    def convert(model: PreTrainedModel) -> PreTrainedModel:
        exact = copy.deepcopy(model).double()
        exact.model.rotary_emb = _Float64RotaryEmbedding(model.model.rotary_emb)
        return exact

    return convert


class _Float64RotaryEmbedding(nn.Module):
    def __init__(self, stock: LlamaRotaryEmbedding | MistralRotaryEmbedding) -> None:
        super().__init__()
        theta, dim = stock.config.rope_parameters["rope_theta"], 2 * len(stock.inv_freq)
        self.inv_freq = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)

    def forward(self, x, position_ids):
        angles = position_ids[..., None].double() * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

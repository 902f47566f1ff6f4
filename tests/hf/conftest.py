import copy
import math
import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.mistral.modeling_mistral import MistralForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from bench.support_matrix import PACKAGES
from lrk.frequencies import rope_frequencies
from lrk.hf import SUPPORTED
from lrk.hf.canary import tiny_config, tiny_model
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
FURTHER = sorted(set(SUPPORTED) - MODELS.keys())
"""Types whose forwards stay transformers' own, but for what tests of the others look at as well."""
MODELS |= {
    model_type: lambda shape, model_type=model_type: tiny_model(
        tiny_config(model_type, **shape, head_dim=8)
    )
    for model_type in FURTHER
}
# What is looked at in each run of the tests for further types too; the rest of the support matrix
# is for `pytest -m support`.
OF_EVERY_RUN = {
    *("logits, loss and gradients", "left padding", "packed documents", "skipped positions"),
    *("dynamic cache", "static cache", "no cache", "LoRA, patched before"),
    *("checkpointing, use_reentrant=False", "norms and MLPs in tiles", "save_pretrained"),
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "support(feature): a row of docs/support.md, made by bench/support_matrix.py"
    )


@pytest.hookimpl(tryfirst=True)  # before the marks choose
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what the support matrix needs into the report of `--junitxml`, and leave some to it."""
    for item in items:
        marker = item.get_closest_marker("support")
        further = hasattr(item, "callspec") and item.callspec.params.get("stock") in FURTHER
        if further and (marker is None or marker.args[0] not in OF_EVERY_RUN):
            item.add_marker(pytest.mark.slow)
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
        exact.model.rotary_emb = _Float64RotaryEmbedding(model)
        if model.config._attn_implementation == "eager":  # which has a softmax in float32
            exact.set_attn_implementation(_PLAIN)
        if hasattr(exact.config, "num_experts_per_tok"):
            exact.set_experts_implementation("eager")  # others know no float64
        return exact

    return convert


_PLAIN = "plain_in_any_dtype"


def _plain_attention(
    module, query, key, value, mask, scaling, softcap=None, s_aux=None, **arguments
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    scores = query @ key.mT * scaling
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if mask is not None:
        scores = scores.masked_fill(mask < 0, -math.inf)
    if s_aux is not None:
        scores = torch.cat([scores, s_aux.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], dim=-1)
    shares = scores.softmax(dim=-1).nan_to_num()[..., : key.shape[2]]
    return (shares @ value).transpose(1, 2), None


AttentionInterface.register(_PLAIN, _plain_attention)
AttentionMaskInterface.register(_PLAIN, eager_mask)


class _Float64RotaryEmbedding(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.config = model.config
        # gpt-oss has each angle once, the others twice.
        self.times = 1 if model.config.model_type == "gpt_oss" else 2

    def forward(self, x, position_ids, layer_type=None):
        inv_freq, scaling = rope_frequencies(self.config, layer_type)
        angles = torch.cat(self.times * [position_ids[..., None].double() * inv_freq], dim=-1)
        return angles.cos() * scaling, angles.sin() * scaling

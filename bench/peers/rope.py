"""RoPE of a model's shape: q (1, H, S, D), k (1, Hk, S, D) and position_ids (1, S)."""

import shutil
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from bench.case import Model
from bench.device import DEVICE
from bench.peers import Unavailable, need_gpu, need_package
from lrk.frequencies import rope_frequencies
from lrk.kernels.rope import phase_increments, rope, rope_triton

Rotate = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


@cache
def config(shape: Model) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=shape.num_heads * shape.head_dim,
        head_dim=shape.head_dim,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )


def frequencies(shape: Model) -> Tensor:
    """(D / 2,) float64, in radians a position."""
    return rope_frequencies(config(shape)).inv_freq.to(DEVICE)


def lrk(shape: Model) -> Rotate:
    """Ours for the device."""
    increments = phase_increments(frequencies(shape))
    return lambda q, k, position_ids: rope(q, k, position_ids, increments)


def lrk_triton(shape: Model) -> Rotate:
    """Our kernel, on a CPU in Triton's interpreter."""
    increments = phase_increments(frequencies(shape))
    return lambda q, k, position_ids: rope_triton(q, k, position_ids, increments)


def _embedding(shape: Model) -> LlamaRotaryEmbedding:
    return LlamaRotaryEmbedding(config(shape)).to(DEVICE)


def transformers(shape: Model) -> Rotate:
    """The tables and their use. A model makes the tables once for all of its layers."""
    embedding = _embedding(shape)
    return lambda q, k, position_ids: apply_rotary_pos_emb(q, k, *embedding(q, position_ids))


def transformers_given_tables(shape: Model) -> Rotate:
    embedding = _embedding(shape)
    tables: dict[tuple[torch.dtype, int], tuple[Tensor, Tensor]] = {}

    def rotate(q: Tensor, k: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        key = q.dtype, q.shape[2]
        if key not in tables:
            tables[key] = embedding(q, position_ids)
        return apply_rotary_pos_emb(q, k, *tables[key])

    return rotate


def compiled(shape: Model) -> Rotate:
    """transformers' with its tables made anew, compiled."""
    if not shutil.which("g++"):
        raise Unavailable("torch.compile needs g++")
    return torch.compile(transformers(shape), fullgraph=True, dynamic=False)


def liger(shape: Model) -> Rotate:
    need_gpu("Liger-Kernel")
    need_package("liger_kernel", "liger-kernel")
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    embedding = _embedding(shape)
    return lambda q, k, position_ids: liger_rotary_pos_emb(q, k, *embedding(q, position_ids))

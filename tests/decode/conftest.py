import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import lrk

VOCABULARY = 61
HEAD_DIM, THETA = 8, 1e4

RelativePosition = Callable[[int, int], int]


@pytest.fixture
def model() -> PreTrainedModel:
    """A tiny patched Llama with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=32,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        # Large enough for attention that is far from uniform.
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    return lrk.patch(LlamaForCausalLM(config).eval())


@dataclass(frozen=True)
class Directly:
    """Attention and a whole Llama by the definition, in float64, pair by pair of tokens.

    Attributes:
        inv_freq: (D/2,) frequencies.
    """

    inv_freq: Tensor

    def attention(self, q: Tensor, k: Tensor, v: Tensor, relative: RelativePosition) -> Tensor:
        """Every score is formed at its own relative position; (H, S, D) tensors of one document."""
        group, head_dim = q.shape[0] // k.shape[0], q.shape[-1]
        k, v = (x.double().repeat_interleave(group, 0) for x in (k, v))
        length = q.shape[1]
        apart = torch.tensor([[relative(m, n) for n in range(length)] for m in range(length)])
        angles = apart[..., None].double() * self.inv_freq
        cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        one, two = q.double().chunk(2, dim=-1)
        turned = (
            q.double()[:, :, None] * cos + torch.cat([-two, one], -1)[:, :, None] * sin
        )  # (H, S, S, D)
        scores = (turned * k[:, None]).sum(-1) / math.sqrt(head_dim)
        hidden = torch.ones(length, length).triu(1).bool()
        return scores.masked_fill(hidden, -math.inf).softmax(-1) @ v

    def logits(self, model: PreTrainedModel, tokens: Tensor, relative: RelativePosition) -> Tensor:
        """(S, V) logits of one row of tokens."""
        exact = lrk.unpatch(copy.deepcopy(model)).double()
        x = exact.model.embed_tokens(tokens)
        for layer in exact.model.layers:
            normed = layer.input_layernorm(x)
            attention = layer.self_attn
            q, k, v = (
                projection(normed).view(len(tokens), -1, HEAD_DIM).transpose(0, 1)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            out = self.attention(q, k, v, relative).transpose(0, 1).reshape(len(tokens), -1)
            x = x + attention.o_proj(out)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return exact.lm_head(exact.model.norm(x)).detach()


@pytest.fixture
def directly() -> Directly:
    return Directly(THETA ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM))

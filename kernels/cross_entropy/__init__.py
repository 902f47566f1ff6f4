from .kl import linear_kl, linear_kl_reference, linear_kl_triton
from .op import (
    TokenLogprobs,
    linear_cross_entropy,
    linear_cross_entropy_triton,
    token_logprobs,
    token_logprobs_triton,
)
from .parallel import vocab_parallel_linear_cross_entropy
from .reference import linear_cross_entropy_reference, token_logprobs_reference

__all__ = [
    "TokenLogprobs",
    "linear_cross_entropy",
    "linear_cross_entropy_reference",
    "linear_cross_entropy_triton",
    "linear_kl",
    "linear_kl_reference",
    "linear_kl_triton",
    "token_logprobs",
    "token_logprobs_reference",
    "token_logprobs_triton",
    "vocab_parallel_linear_cross_entropy",
]

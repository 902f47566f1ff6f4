"""Verification: a sample is kept where its length lowers a model's own loss.

EntropyLong (2510.02330) keeps a context where it lowers the entropy of what a model predicts, at
positions where the model is unsure without it. Here it is the loss of the text itself, over all
tokens that the context is there for. Those that had a high loss with the short context would show a
gain by being chosen so: measured again in any other context they come out lower on average.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lrk.data.assemble.bm25 import Tokens
from lrk.eval.longppl import SHORT_CONTEXT, SHORT_STRIDE
from lrk.eval.losses import check_head, token_losses
from lrk.field_types import check_types
from lrk.hf import SUPPORTED, patch
from lrk.hf.patch import check_release
from lrk.pretrained import check_config, load_auto, load_weights
from lrk.recipe.data_files import content_hashes
from lrk.recipe.fingerprint import tokenizer_fingerprint
from lrk.sealed import digest
from lrk.train.arguments import DTYPES
from lrk.train.nearest import require_one_of

# Of a text (S,): the losses (S,) given a short context, and given all that comes before.
Losses = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Verification:
    """By which model, and how much it must gain.

    Attributes:
        model, gguf_file, dtype: as in `lrk-eval`.
        min_gain: nats a token.
        short_context, short_stride: a token's short context has from `short_context` to
            `short_context + short_stride - 1` tokens, as in `lrk-data analyze`.
    """

    model: str = field(metadata={"argument": "verify_model"})
    gguf_file: str | None = field(default=None, metadata={"argument": "verify_gguf_file"})
    dtype: str = field(default="auto", metadata={"argument": "verify_dtype"})
    min_gain: float = field(default=0.0, metadata={"argument": "min_gain"})
    short_context: int = field(default=SHORT_CONTEXT, metadata={"argument": "short_context"})
    short_stride: int = field(default=SHORT_STRIDE, metadata={"argument": "short_stride"})

    def __post_init__(self) -> None:
        check_types(self)
        if not self.model:
            raise ValueError("verify_model is empty; it must name a folder or a hub model")
        require_one_of("verify_dtype", self.dtype, DTYPES)
        if not math.isfinite(self.min_gain):
            raise ValueError(f"min_gain is {self.min_gain}; it must be finite")
        for name in ("short_context", "short_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def check_length(self, length: int) -> None:
        """Refuse samples in which no token has more than a short context."""
        shortest = self.short_context + self.short_stride
        if length <= shortest:
            raise ValueError(
                f"target_length is {length}; with verify_model it must be more than short_context "
                f"+ short_stride, {shortest}"
            )

    def check_model(self, tokenizer: PreTrainedTokenizerBase, length: int) -> str:
        """Refuse a model that cannot judge samples of `length` tokens of this tokenizer.

        Returns:
            A hash of its files, or its commit on the hub.

        Raises:
            ValueError: if it does not exist, has another tokenizer, or a shorter window: what it
                says beyond that means nothing.
        """
        config = load_auto(AutoConfig, "verify_model", self.model, self.gguf_file)
        check_config("verify_model", self.model, config)
        if config.model_type in SUPPORTED:
            check_release(config.model_type)
        window = config.max_position_embeddings
        if window < length:
            raise ValueError(
                f"verify_model {self.model!r} has a window of {window:,} tokens, shorter than "
                f"target_length {length:,}: what it loses beyond says nothing of the text"
            )
        own = load_auto(AutoTokenizer, "verify_model", self.model, self.gguf_file)
        if tokenizer_fingerprint(own) != tokenizer_fingerprint(tokenizer):
            raise ValueError(
                f"verify_model {self.model!r} has another tokenizer than tokenizer "
                f"{tokenizer.name_or_path!r}"
            )
        if (folder := Path(self.model).expanduser()).is_dir():
            return digest(sorted(content_hashes([str(folder)]).values()))
        return str(getattr(config, "_commit_hash", None))

    def gain(self, ids: Tokens, scored: NDArray[np.bool_], losses: Losses) -> float:
        """Mean, over the scored tokens that have more than a short context, of short less long.

        Args:
            ids, scored: (S,).

        Raises:
            ValueError: if it is not finite.
        """
        short, long = losses(torch.from_numpy(ids.astype(np.int64)))
        far = torch.from_numpy(scored)
        far[: self.short_context + self.short_stride] = False
        if not far.any():
            raise ValueError(
                "a sample has no token with more than a short context that others could help; with "
                f"target_length {len(ids)}, short_context is {self.short_context} and short_stride "
                f"{self.short_stride}: choose shorter ones"
            )
        gain = (short - long)[far].double().mean().item()
        if not math.isfinite(gain):
            raise ValueError(f"verify_model {self.model!r} gains {gain}, which is not finite")
        return gain


@dataclass(frozen=True)
class ModelLosses:
    """`Losses` of a model, which each process loads when it first needs it."""

    verification: Verification
    device: str

    def __call__(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        model = _loaded(self.verification, self.device)
        stride = self.verification.short_stride
        window = self.verification.short_context + stride
        return token_losses(model, input_ids, window, stride), token_losses(model, input_ids)


@cache
def _loaded(verification: Verification, device: str) -> PreTrainedModel:
    model = load_weights(
        "verify_model", verification.model, verification.gguf_file, dtype=verification.dtype
    )
    model = model.to(torch.device(device)).eval()
    check_head(model, torch.arange(8))
    return patch(model) if model.config.model_type in SUPPORTED else model

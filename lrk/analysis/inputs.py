"""What an analysis starts from: configs, tokenizer, samples, weights; small things come first."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lrk.analysis.arguments import AnalysisArguments
from lrk.analysis.extended import FACTOR
from lrk.eval.losses import check_head
from lrk.hf import SUPPORTED, patch
from lrk.hf.architectures import check_supported
from lrk.hf.patch import check_release
from lrk.pretrained import check_config, check_vocabulary, load_auto, load_weights
from lrk.recipe import Placement, Samples, load_documents, tokenize
from lrk.recipe.fingerprint import tokenizer_fingerprint
from lrk.recipe.prepared import is_prepared, open_prepared


def load_config(arguments: AnalysisArguments) -> PretrainedConfig:
    """The base model's config.

    Raises:
        ValueError: if there is no such model, or skipped positions are asked of an architecture
            that lrk cannot patch, or lrk does not support the installed transformers.
    """
    config = load_auto(AutoConfig, "model", arguments.model, arguments.gguf_file)
    if arguments.target_length is not None:
        check_supported(
            config,
            f"target_length is {arguments.target_length}, so that positions skip, but model "
            f"{arguments.model!r} is",
        )
    if config.model_type in SUPPORTED:
        check_release(config.model_type)
    check_config("model", arguments.model, config)
    return config


def load_tokenizer(
    arguments: AnalysisArguments, config: PretrainedConfig
) -> PreTrainedTokenizerBase:
    """The base model's tokenizer."""
    tokenizer = load_auto(AutoTokenizer, "model", arguments.model, arguments.gguf_file)
    check_vocabulary(tokenizer, config.vocab_size)
    # Samples longer than the model's window are the point here: no warning about them.
    tokenizer.model_max_length = 10**9
    return tokenizer


def reach(
    arguments: AnalysisArguments, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> int:
    """The window of the longer-reaching model, in tokens.

    Raises:
        ValueError: if the extended model has another vocabulary or tokenizer, or no longer window.
    """
    window = config.max_position_embeddings
    if arguments.extend_steps:
        return FACTOR * window
    if arguments.extended is None:
        return window
    what = f"extended {arguments.extended!r}"
    extended = load_auto(AutoConfig, "extended", arguments.extended, None)
    check_config("extended", arguments.extended, extended)
    if extended.vocab_size != config.vocab_size:
        raise ValueError(
            f"{what} has a vocabulary of {extended.vocab_size:,} tokens, model "
            f"{arguments.model!r} of {config.vocab_size:,}; they must be the same"
        )
    own = load_auto(AutoTokenizer, "extended", arguments.extended, None)
    if tokenizer_fingerprint(own) != tokenizer_fingerprint(tokenizer):
        raise ValueError(f"{what} has another tokenizer than model {arguments.model!r}")
    if extended.max_position_embeddings <= window:
        raise ValueError(
            f"{what} has a window of {extended.max_position_embeddings:,} tokens, no longer than "
            f"that of model {arguments.model!r}, {window:,}"
        )
    return extended.max_position_embeddings


class Texts:
    """The samples that are analyzed: N of S tokens, spread evenly over all that the data hold.

    Attributes:
        length: S.

    Raises:
        ValueError: for data that cannot be read, or hold too few samples to take a top of.
    """

    def __init__(
        self, arguments: AnalysisArguments, tokenizer: PreTrainedTokenizerBase, length: int
    ) -> None:
        if is_prepared(arguments.data[0]):
            documents = open_prepared(arguments.data, tokenizer)
        else:
            documents = tokenize(load_documents(arguments.data, arguments.text_column), tokenizer)
        samples = Samples(documents, length, pack=False)
        count = min(arguments.samples, len(samples))
        if arguments.compares_models and count * arguments.top_share < 1:
            raise ValueError(
                f"data hold {count} samples of {length:,} tokens; the top "
                f"{arguments.top_share:.0%} of the tokens at each place needs more: add documents "
                "or shorten length"
            )
        self.length = length
        self._samples = samples
        self._chosen = np.arange(count) * len(samples) // count
        target = arguments.target_length
        self._placement = (
            Placement(target, arguments.position_method, seed=arguments.seed)
            if target is not None and target > length
            else None
        )

    def __len__(self) -> int:
        return len(self._chosen)

    def input_ids(self, index: int) -> Tensor:
        """(S,) int64."""
        return self._samples[int(self._chosen[index])]["input_ids"]

    def position_ids(self, index: int) -> Tensor | None:
        """(S,) int64 if the sample is spread over more positions than it has tokens."""
        if self._placement is None:
            return None
        return self._placement.position_ids(self._samples[int(self._chosen[index])])

    def segment_lengths(self, index: int) -> NDArray[np.int32]:
        """(K,) tokens of each sentence."""
        (lengths,) = self._samples[int(self._chosen[index])]["segment_lengths"]
        return lengths.numpy()

    def fingerprint(self) -> str:
        """Of all tokens."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(self.input_ids(index).numpy().tobytes())
        return digest.hexdigest()


def load_model(
    arguments: AnalysisArguments, argument: str, name: str, gguf_file: str | None, text: Tensor
) -> PreTrainedModel:
    """The weights on the device, patched where lrk knows the architecture.

    Args:
        text: some tokens, on which the model must show what `check_head` asks for.
    """
    model = load_weights(argument, name, gguf_file, dtype=arguments.dtype)
    model = model.to(torch.device(str(arguments.device))).eval()
    check_head(model, text)
    return patch(model) if model.config.model_type in SUPPORTED else model

"""Needle samples, and the loss of what has to be found in them.

LongRoPE2 (2502.20082, section 3.2 and appendix C): the perplexity of a long text is that of tokens
which need nothing far away. So a needle stands at the start of a text of the target's length, the
text ends with the question for it, and of the answer alone the loss is taken. The wording is
RULER's, as in appendix C, with one key for all.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lrk.eval.fitting import Trials
from lrk.eval.haystack import Essay
from lrk.eval.niah import grid
from lrk.eval.prompt import Encoder

_ANSWER_TOKENS = 16
"""Kept free for a number of seven digits."""


@dataclass(frozen=True)
class NeedleSample:
    """Texts of the same length with something to be found.

    Attributes:
        input_ids: (B, S) int64.
        labels: (B, S) int64: the tokens of the answer, -100 elsewhere.
    """

    input_ids: Tensor
    labels: Tensor


def needle_samples(
    tokenizer: PreTrainedTokenizerBase,
    haystacks: Sequence[Essay],
    count: int,
    length: int,
    seed: int,
) -> list[NeedleSample]:
    """Samples of one text each, of at most `length` tokens and a few less.

    Args:
        haystacks: texts that hide the needle, in turn, over and over; without one RULER's repeated
            sentences.
        count: how many.
        length: tokens, with the answer.
        seed: of the numbers to be found.

    Raises:
        ValueError: if not even the shortest haystack fits.
    """
    encoder = Encoder(tokenizer)
    trials = [
        Trials("rope", grid(0.0, essay=essay), encoder, length, _ANSWER_TOKENS, seed)
        for essay in haystacks or (None,)
    ]
    try:
        sizes = [each.size() for each in trials]
    except ValueError as error:
        # It begins with the length.
        raise ValueError(f"target_{error}") from error
    return [
        _sample(tokenizer, trials[index % len(trials)], sizes[index % len(trials)], index)
        for index in range(count)
    ]


def _sample(
    tokenizer: PreTrainedTokenizerBase, trials: Trials, size: int, index: int
) -> NeedleSample:
    prompt, ids = trials(index, size)
    (answer,) = prompt.references
    whole = tokenizer(f"{prompt.text}{prompt.answer_prefix} {answer}").input_ids
    input_ids = torch.tensor([whole])
    labels = input_ids.clone()
    labels[:, : _common(ids, whole)] = -100
    return NeedleSample(input_ids, labels)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts have in common from the start on."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@torch.no_grad()
def needle_loss(model: PreTrainedModel, samples: Sequence[NeedleSample]) -> float:
    """Nats a token of all answers together; the perplexity is its exponential.

    Args:
        model: patched by `lrk.patch`, so that no logits are formed.

    Raises:
        ValueError: if it is not finite.
    """
    total, tokens = 0.0, 0
    for sample in samples:
        labels = sample.labels.to(model.device)
        output = model(
            input_ids=sample.input_ids.to(model.device),
            labels=labels,
            use_cache=False,
            output_logits=False,
        )
        count = int((labels[:, 1:] != -100).sum())
        total += output.loss.double().item() * count
        tokens += count
    if not abs(total) < float("inf"):
        raise ValueError(
            f"model is a {type(model).__name__} whose loss is {total / tokens}, by which no "
            "factors can be compared"
        )
    return total / tokens


def fingerprint(samples: Sequence[NeedleSample]) -> str:
    """Of all tokens and labels."""
    digest = hashlib.sha256()
    for sample in samples:
        for tensor in (sample.input_ids, sample.labels):
            digest.update(f"{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]

"""A model's window extended to the target by a method."""

import torch
from torch import Generator, Tensor
from transformers import LlamaForCausalLM

import lrk
from lrk.hf.distillation import Distillation, last_hidden
from lrk.train.extension import extend
from studies.real_text.corpus import Corpus
from studies.real_text.methods import CONTIGUOUS_SHARE, TEACHER_PASS, Method, samples_a_step, steps
from studies.real_text.model import Optimizer
from studies.real_text.scale import Scale

RATE = 1e-3


def extended(
    model: LlamaForCausalLM, method: Method, seed: int, corpus: Corpus, scale: Scale
) -> LlamaForCausalLM:
    """`model` itself, extended and patched.

    All methods train on the same files, those of at least the target's tokens.
    """
    if method.rope:
        extend(model, scale.target)
    lrk.patch(model)
    if method.length is None:
        return model
    generator = torch.Generator().manual_seed(seed)
    optimizer = Optimizer(model, RATE, steps(method, scale))
    for _ in range(steps(method, scale)):
        input_ids = _cuts(corpus, method.length, samples_a_step(method, scale), scale, generator)
        position_ids = _placed(method, input_ids, corpus, scale, generator)
        inputs = {"input_ids": input_ids, "position_ids": position_ids, "labels": input_ids}
        if method.temperature != 1:
            inputs["attention_temperature"] = method.temperature
        if method.views:
            hidden = last_hidden(model, {"input_ids": input_ids})
            inputs["distillation"] = Distillation(hidden, method.views)
        optimizer.step(**inputs)
    return model


def training_flop(model: LlamaForCausalLM, method: Method, scale: Scale, tokens: int) -> float:
    """6 a weight and token; 6 a layer, channel and pair of tokens, half of which are masked; a
    third more for a teacher."""
    if method.length is None:
        return 0.0
    pairs = scale.layers * scale.hidden * method.length
    passes = TEACHER_PASS if method.views else 1.0
    return tokens * 6.0 * passes * (model.num_parameters() + pairs)


def _cuts(corpus: Corpus, length: int, count: int, scale: Scale, generator: Generator) -> Tensor:
    """(count, length): from files of at least the target, which are drawn by their size."""
    sizes = corpus.starts.diff()
    weights = sizes.where(sizes >= scale.target, 0).double()
    chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
    slack = sizes[chosen] - length
    offsets = (torch.rand(count, generator=generator, dtype=torch.float64) * (slack + 1)).long()
    begins = corpus.starts[chosen] + offsets
    return torch.stack([corpus.training[begin : begin + length] for begin in begins.tolist()])


def _placed(
    method: Method, input_ids: Tensor, corpus: Corpus, scale: Scale, generator: Generator
) -> Tensor:
    """(B, S) positions, drawn for each sample."""
    rows = []
    for ids in input_ids:
        ordinary = torch.rand((), generator=generator) < CONTIGUOUS_SHARE
        if ordinary or method.length == scale.target:
            rows.append(torch.arange(len(ids)))
        else:
            reach = round(method.reach * scale.target)
            rows.append(method.sampler(_lines(ids, corpus), reach, generator))
    return torch.stack(rows)


def _lines(ids: Tensor, corpus: Corpus) -> Tensor:
    """(N,) tokens of each line: a token that begins with a line's end begins the next one."""
    begins = corpus.ends_line[ids]
    begins[0] = True
    places = begins.nonzero().flatten()
    return torch.diff(places, append=torch.tensor([len(ids)]))

"""A search from its first check to the file of factors."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lrk.atomic import write_text
from lrk.env import environment
from lrk.eval.haystack import read_essay
from lrk.hf import patch
from lrk.hf.architectures import check_supported
from lrk.hf.patch import check_release
from lrk.lock import locked
from lrk.longrope.arguments import LongRopeArguments
from lrk.longrope.needles import NeedleSample, fingerprint, needle_samples
from lrk.longrope.search import Found, Rope, losses_by_plan, search_factors
from lrk.longrope.trials import Trials
from lrk.output_folder import check_output_dir
from lrk.pretrained import (
    check_config,
    check_vocabulary,
    fingerprint_weights,
    load_auto,
    load_weights,
)
from lrk.recipe.fingerprint import tokenizer_fingerprint
from lrk.settings_folder import SettingsFolder
from lrk.train.reached_layers import reached_layers

FACTORS, TRIALS = "rope_factors.json", "trials.json"


@dataclass(frozen=True)
class Result:
    """What was found, and where it is.

    Attributes:
        file: the factors, for `rope_scaling: longrope`.
        found: by the search.
        held_out: nats a token of answers that were not searched with, by `losses_by_plan`.
    """

    file: Path
    found: Found
    held_out: dict[str, dict[str, float]]

    def report(self) -> str:
        """A few lines for the terminal."""
        found = self.found
        losses = sorted(self.held_out.items(), key=lambda item: item[1]["own"])
        rows = [
            f"  {plan:<12} {loss['own']:.4f} (with the same factor of cosine and sine: "
            f"{loss['same']:.4f})"
            for plan, loss in losses
        ]
        return "\n".join(
            [
                f"{found.trials:,} candidates; critical pair {found.critical} (theoretical: "
                f"{found.theoretical}); loss {found.initial:.4f} at first, {found.loss:.4f} now",
                "divisors: " + " ".join(f"{factor:.3g}" for factor in found.factors.long_factor),
                "held-out loss, nats a token of the answer:",
                *rows,
                str(self.file),
            ]
        )


def find_factors(arguments: LongRopeArguments) -> Result:
    """Search factors for a model; see docs/rope_scaling.md.

    Every trial is kept in the output folder, so that a search that was stopped goes on where it
    was, and one that is repeated with more iterations goes on where it ended.

    Raises:
        ValueError: in one sentence, for anything that the arguments get wrong.
        atomic.SaveError: if something cannot be written; what was saved before is intact.
    """
    check_output_dir(arguments.output_dir)
    config = _config(arguments)
    tokenizer = _tokenizer(arguments, config)
    haystacks = [read_essay(Path(name)) for name in arguments.haystack]
    count = arguments.samples
    drawn = needle_samples(tokenizer, haystacks, 2 * count, arguments.target_length, arguments.seed)
    with locked(Path(arguments.output_dir)):
        return _find(arguments, config, tokenizer, drawn[:count], drawn[count:])


def _find(
    arguments: LongRopeArguments,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    samples: list[NeedleSample],
    held_out: list[NeedleSample],
) -> Result:
    start = time.perf_counter()
    folder = SettingsFolder(Path(arguments.output_dir), (FACTORS, TRIALS), "a search")
    folder.clear(arguments.overwrite_output_dir)
    settings = arguments.identity() | {
        "tokens": fingerprint(samples),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "window": config.max_position_embeddings,
        "rope_parameters": config.rope_parameters,
    }
    folder.check(settings)
    model = _model(arguments)
    settings["weights"] = fingerprint_weights(model)
    folder.begin(settings)
    found = search_factors(
        model,
        samples,
        arguments.target_length,
        arguments.evolution(),
        Trials(folder.path / TRIALS),
        arguments.attention_factor,
    )
    losses = losses_by_plan(model, held_out, found)
    factors = found.to_dict() | {
        "held_out_loss": losses,
        "model": arguments.model,
        "haystack": arguments.haystack,
        "settings": settings | {"iterations": arguments.iterations},
        "seconds": time.perf_counter() - start,
        "environment": environment(sys.argv),
    }
    file = folder.path / FACTORS
    write_text(file, json.dumps(factors, indent=1, ensure_ascii=False) + "\n")
    return Result(file, found, losses)


def _config(arguments: LongRopeArguments) -> PretrainedConfig:
    config = load_auto(AutoConfig, "model", arguments.model, arguments.gguf_file)
    check_supported(config, f"model {arguments.model!r} is")
    check_release(config.model_type)
    check_config("model", arguments.model, config)
    Rope.of(config).space(arguments.target_length)
    layers = reached_layers(config, config.max_position_embeddings)
    if layers.reached == 0:
        raise ValueError(
            f"model {arguments.model!r} has nothing to search factors for: {layers.obstacle}"
        )
    return config


def _tokenizer(arguments: LongRopeArguments, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    tokenizer = load_auto(AutoTokenizer, "model", arguments.model, arguments.gguf_file)
    check_vocabulary(tokenizer, config.vocab_size)
    # Samples longer than the model's window are the point here: no warning about them.
    tokenizer.model_max_length = 10**9
    return tokenizer


def _model(arguments: LongRopeArguments) -> PreTrainedModel:
    model = load_weights("model", arguments.model, arguments.gguf_file, dtype=arguments.dtype)
    return patch(model.to(torch.device(str(arguments.device))).eval())

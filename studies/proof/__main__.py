"""Does it really extend the context? A study from nothing to a verdict, on a laptop.

    make proof
    python -m studies.proof [--seeds 5] [--output_dir outputs/proof]

A tiny Llama learns to quote within 128 tokens. It is then extended to 1,024 by each method at the
same number of training tokens, with as many seeds as asked for, and has to quote from 128 to 2,048
tokens, in ordinary positions. Runs that are already in the results file are not repeated.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from rich.progress import track
from transformers import LlamaForCausalLM

from studies.proof.methods import METHODS, TARGET, WINDOW, Method
from studies.proof.model import EXTENSION_STEPS, TOKENS_PER_STEP, extended, measured, pretrained
from studies.proof.report import draw, table

LENGTHS = (WINDOW, 2 * WINDOW, 4 * WINDOW, TARGET, 2 * TARGET)
SAMPLES = 48
DEPTH_BINS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/proof"))
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error(f"--seeds is {arguments.seeds}; a confidence interval needs at least 2")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    file = arguments.output_dir / "results.json"
    results = json.loads(file.read_text()) if file.exists() else []
    begin = time.perf_counter()
    study(arguments.seeds, results, file, arguments.output_dir / "base")
    text = table(results)
    (arguments.output_dir / "table.md").write_text(text + "\n")
    draw(results, arguments.output_dir / "proof.png")
    print(text)
    print(f"{time.perf_counter() - begin:.0f} s on {torch.get_num_threads()} cores")


def study(seeds: int, results: list[dict], file: Path, base_folder: Path) -> None:
    """Make the runs that `results` lacks, appending each to it and to its file."""
    base = base_model(base_folder)
    done = {(row["method"], row["seed"]) for row in results}
    missing = [(m, seed) for seed in range(seeds) for m in METHODS if (m.name, seed) not in done]
    for method, seed in track(missing, description="runs"):
        results.append(result(base, method, seed))
        _write(results, file)


def base_model(folder: Path) -> LlamaForCausalLM:
    """The pretrained model, from the folder if an earlier start of the study has left it there."""
    if not folder.exists():
        temporary = folder.with_suffix(".tmp")
        pretrained(seed=0).save_pretrained(temporary)
        os.replace(temporary, folder)
    return LlamaForCausalLM.from_pretrained(folder)


def result(base: LlamaForCausalLM, method: Method, seed: int) -> dict:
    """One run: how many quoted tokens are right, by length, and by depth at the target."""
    begin = time.perf_counter()
    model = extended(base, method, seed)
    seconds = time.perf_counter() - begin
    accuracy, by_depth = {}, {}
    for length in LENGTHS:
        hits, depths = measured(model, length, seed, SAMPLES)
        accuracy[length] = hits.mean().item()
        bins = (depths * DEPTH_BINS).long().clamp(max=DEPTH_BINS - 1)
        by_depth[length] = [hits[bins == n].mean().item() for n in range(DEPTH_BINS)]
    return {
        "method": method.name,
        "seed": seed,
        "accuracy": {str(length): value for length, value in accuracy.items()},
        "by_depth": {str(length): values for length, values in by_depth.items()},
        "training_tokens": _tokens(method),
        "training_flop": _flop(model, method),
        "training_seconds": seconds,
    }


def _tokens(method: Method) -> int:
    if method.length is None:
        return 0
    return EXTENSION_STEPS * round(TOKENS_PER_STEP / method.length) * method.length


def _flop(model: LlamaForCausalLM, method: Method) -> float:
    """6 a parameter and token, and 6 a pair of tokens, channel and layer, of which half is seen."""
    if method.length is None:
        return 0.0
    config = model.config
    pairs = config.num_hidden_layers * config.hidden_size * method.length
    return _tokens(method) * 6.0 * (model.num_parameters() + pairs)


def _write(results: list[dict], file: Path) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, file)


if __name__ == "__main__":
    main()

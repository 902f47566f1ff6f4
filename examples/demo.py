"""Extend a real pretrained Llama from 8,192 to 131,072 positions on a CPU, and show what that did.

    make demo            12 minutes on 2 cores
    make demo-full       an hour and a half: more steps, and every model at all four lengths

SmolLM2-135M is trained on Python's standard library, 1,024 tokens a sample, whose positions
LongRecipe spreads over 131,072. Held-out files are then read at four simulated lengths: their 1,024
tokens are spread over 1,024, 8,192, 32,768 and 131,072 positions, and the loss is taken on the
second half of each. (Without --full the two lengths between are measured for the trained model
only.) Training on this corpus also teaches the corpus, so a control is trained for as
many steps, on the same samples, in ordinary positions: only the difference between the two is gain
in range.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

import lrk
from examples import standard_library
from examples.smollm2 import load_smollm2
from lrk.peak_memory import peak_memory_gib
from lrk.picture import GREY, faint, label_lines, new_picture
from lrk.recipe import Collator, PlacedSamples, Placement, Samples, tokenize
from lrk.train import LrkTrainingArguments, build_trainer, run
from lrk.train.extension import extend

TARGET = 131_072
SAMPLE = 1_024
LENGTHS = (SAMPLE, 8_192, 32_768, TARGET)
ENDS = (SAMPLE, TARGET)
QUICK_STEPS, FULL_STEPS = 10, 160
LEARNING_RATE = 3e-4
CONTIGUOUS_SHARE = 0.5

Losses = dict[int, float]


def main() -> None:
    parser = argparse.ArgumentParser(description="Extend SmolLM2-135M to 131,072 positions.")
    parser.add_argument("--full", action="store_true", help=f"{FULL_STEPS} steps in place of few")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"))
    arguments = parser.parse_args()
    folder = arguments.output_dir / ("demo-full" if arguments.full else "demo")
    steps = FULL_STEPS if arguments.full else QUICK_STEPS
    lengths = LENGTHS if arguments.full else ENDS

    begin = time.perf_counter()
    base, tokenizer = load_smollm2()
    held_out = held_out_samples(tokenizer)
    samples = Samples(tokenize(standard_library.training_documents(), tokenizer), SAMPLE)
    losses = {"untouched": evaluate(base, held_out, lengths, "untouched")}
    rescaled = extend(copy.deepcopy(base), TARGET)
    losses["theta rescaled"] = evaluate(rescaled, held_out, lengths, "theta rescaled")
    for name, method, at in (
        ("control", "contiguous", lengths),
        ("trained", "longrecipe", LENGTHS),
    ):
        arguments = training_arguments(method, steps, folder / method)
        trainer = build_trainer(copy.deepcopy(base), tokenizer, samples, arguments)
        losses[name] = evaluate(run(trainer).model, held_out, at, name)
    seconds = time.perf_counter() - begin

    report(losses, folder)
    draw(losses, folder / "loss.png")
    print(
        f"{seconds:.0f} s, peak memory {peak_memory_gib(torch.device('cpu')):.1f} GiB on "
        f"{torch.get_num_threads()} cores, {steps} steps of {SAMPLE:,} tokens\n"
        f"loss curves: {folder / 'loss.png'}\nmodel: {folder / 'longrecipe'}"
    )


def held_out_samples(tokenizer: PreTrainedTokenizerBase) -> Samples:
    """The beginning of each held-out file, one sample each."""
    tokenized = tokenize(standard_library.held_out_documents(), tokenizer)

    def beginning(row: dict[str, list[int]]) -> dict[str, list[int]]:
        return {"input_ids": row["input_ids"][:SAMPLE]}

    return Samples(tokenized.map(beginning, desc="First tokens"), SAMPLE, pack=False)


def training_arguments(method: str, steps: int, folder: Path) -> LrkTrainingArguments:
    """As for `lrk-train`: `steps` steps with positions of one method."""
    return LrkTrainingArguments(
        output_dir=str(folder),
        overwrite_output_dir=True,
        target_length=TARGET,
        train_length=SAMPLE,
        position_method=method,
        contiguous_share=CONTIGUOUS_SHARE,
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        save_strategy="no",
        report_to="none",
    )


@torch.no_grad()
def evaluate(
    model: LlamaForCausalLM, samples: Samples, lengths: tuple[int, ...], name: str
) -> Losses:
    """Mean loss in nats a token, over the second half of each sample, at each simulated length."""
    losses = {}
    with lrk.patched(model.eval()):
        for length in lengths:
            method = "contiguous" if length == SAMPLE else "longrecipe"
            placement = Placement(length, method)
            batches = DataLoader(PlacedSamples(samples, placement), collate_fn=Collator(placement))
            total = 0.0
            for batch in batches:
                batch["labels"][:, : SAMPLE // 2] = -100
                total += model(**batch, use_cache=False, output_logits=False).loss.item()
            losses[length] = total / len(samples)
            print(f"{name}: {losses[length]:.3f} nats at {length:,}", flush=True)
    return losses


def report(losses: dict[str, Losses], folder: Path) -> None:
    """Print the table and write it as JSON."""
    (folder / "loss.json").write_text(json.dumps(losses, indent=2) + "\n", encoding="utf-8")
    table = Table(title="held-out loss, nats a token, second half of 16 files")
    table.add_column("model")
    for length in LENGTHS:
        table.add_column(f"{length:,}", justify="right")
    for name, row in losses.items():
        cells = (f"{row[length]:.3f}" if length in row else "" for length in LENGTHS)
        table.add_row(name, *cells)
    Console().print(table)
    reference = losses["control"][SAMPLE]
    for length in (SAMPLE, TARGET):
        difference = losses["trained"][length] - reference
        print(f"trained at {length:,}: {difference:+.3f} nats against the control at {SAMPLE:,}")


def draw(losses: dict[str, Losses], picture: Path) -> None:
    """Loss over simulated length, one line a model."""
    colours = {"trained": "C0", "untouched": "C1"}
    title = "SmolLM2-135M, extended from 8,192 to 131,072 positions"
    with new_picture(picture, 6, 4, title) as figure:
        axes = figure.add_subplot()
        for name, row in losses.items():
            places = [LENGTHS.index(length) for length in row]
            axes.plot(places, [*row.values()], "o-", color=colours.get(name, GREY), label=name)
        axes.set_xticks(range(len(LENGTHS)), [f"{length:,}" for length in LENGTHS])
        axes.set(
            xlabel=f"simulated length in positions ({SAMPLE:,} real tokens)",
            title="held-out loss in nats a token",
        )
        axes.grid(axis="y", color=faint())
        label_lines(axes)


if __name__ == "__main__":
    main()

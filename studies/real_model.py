"""SmolLM2-135M from 8,192 to 16,384 tokens, before and after: passkey and loss by position.

    python -m studies.real_model [--output_dir outputs/real_model]

Three models, made by `lrk-train` and measured by `lrk-eval` in ordinary positions at full length:

    untouched   as published
    control     the RoPE base of 16,384, trained on 2,048 tokens a sample in ordinary positions
    trained     the same base, samples and steps; LongRecipe positions over 16,384

Both are trained on the same texts, Python's standard library, so that only the difference between
them is gain in range. Then the methods of `lrk.decode`: those that fit a long text into the window
on the untouched model, PCD, which does not, on the trained one.

Hours on a CPU. What an interrupted start has finished is not repeated: training resumes from its
checkpoints, evaluation from its finished cells.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from examples import standard_library
from examples.smollm2 import load_smollm2
from lrk.atomic import atomic_file
from lrk.eval.command import main as lrk_eval
from lrk.train.command import main as lrk_train

TARGET = 16_384
TRAIN_LENGTH = 2_048
WINDOW = 8_192
LENGTHS = (8_192, 16_384)
BINS = 16
TRAINED = {
    "control": ["--position_method", "contiguous"],
    "trained": ["--position_method", "longrecipe"],
}
# SelfExtend reaches 29,696 tokens, DCA's distances end at 8,191. STRING's can be no less than half
# of the text: they end at 8,256, 65 beyond the window.
DECODING = {
    "untouched, SelfExtend": ("untouched", "self_extend(window=1024, group=4)"),
    "untouched, STRING": ("untouched", "string(shift=8256, window=128)"),
    "untouched, DCA": ("untouched", "dca(chunk=6144, length=8192)"),
    "trained, PCD": ("trained", "pcd"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/real_model"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--documents", type=int, default=2, help="held-out files to read")
    parser.add_argument("--trials", type=int, default=3, help="passkeys at each length")
    arguments = parser.parse_args()
    folder = arguments.output_dir
    prepare(folder)
    models = {"untouched": folder / "untouched"}
    for name, positions in TRAINED.items():
        models[name] = folder / name
        train(folder, models[name], positions, arguments.steps)
    for name, model in models.items():
        at = ["--model", str(model), "--output_dir", str(folder / "results" / name)]
        losses(folder, at, arguments.documents)
        passkeys(at, LENGTHS, arguments.trials)
    for name, (model, method) in DECODING.items():
        at = ["--model", str(models[model]), "--output_dir", str(folder / "results" / name)]
        at += ["--decoding", method]
        if method != "pcd":  # It changes logits only, and not to predict them better.
            losses(folder, at, arguments.documents)
        passkeys(at, LENGTHS[-1:], arguments.trials)
    results = {name: read(folder / "results" / name) for name in (*models, *DECODING)}
    draw(results, folder / "real_model.png")
    text = table(results)
    (folder / "real_model.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def prepare(folder: Path) -> None:
    """The published model as a folder, and the texts as files."""
    if (folder / "untouched" / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    standard_library.training_documents().to_json(folder / "training.jsonl")
    standard_library.held_out_documents().to_json(folder / "held_out.jsonl")
    model, tokenizer = load_smollm2()
    # The dequantised model would be saved as a quantised one.
    stock = type(model)(_without_quantization(model.config))
    stock.load_state_dict(model.state_dict())
    tokenizer.save_pretrained(folder / "untouched")
    stock.save_pretrained(folder / "untouched")


def _without_quantization(config):
    values = config.to_dict()
    values.pop("quantization_config", None)
    return type(config)(**values)


def train(folder: Path, output: Path, positions: list[str], steps: int) -> None:
    if (output / "model.safetensors").exists():
        return
    status = lrk_train(
        [
            *("--model_name_or_path", str(folder / "untouched")),
            *("--data", str(folder / "training.jsonl")),
            *("--output_dir", str(output)),
            *("--target_length", str(TARGET)),
            *("--train_length", str(TRAIN_LENGTH)),
            *positions,
            *("--contiguous_share", "0.3"),
            *("--max_steps", str(steps)),
            *("--learning_rate", "1e-4"),
            *("--lr_scheduler_type", "cosine"),
            *("--warmup_steps", "3"),
            *("--save_steps", "5"),
            *("--save_total_limit", "1"),
            *("--resume_from_checkpoint", "auto"),
        ]
    )
    if status:
        raise SystemExit(status)


def losses(folder: Path, at: list[str], documents: int) -> None:
    """The loss at every position of the longest texts."""
    evaluate(
        [
            *at,
            *("--tasks", "loss_by_position"),
            *("--lengths", str(TARGET)),
            *("--data", str(folder / "held_out.jsonl")),
            *("--documents", str(documents)),
            *("--position_bins", str(BINS)),
        ]
    )


def passkeys(at: list[str], lengths: Sequence[int], trials: int) -> None:
    evaluate([*at, "--tasks", "passkey", "--lengths", *map(str, lengths), "--trials", str(trials)])


def evaluate(argv: list[str]) -> None:
    status = lrk_eval(argv)
    if status:
        raise SystemExit(status)


def read(folder: Path) -> dict:
    """Loss by position as (middle, nats), empty if it was not measured; passkeys by length."""
    cells = json.loads((folder / "results.json").read_text(encoding="utf-8"))["cells"]
    bins = [part for c in cells if c["task"] == "loss_by_position" for part in c["result"]["bins"]]
    return {
        "losses": [((bin["start"] + bin["stop"]) // 2, bin["loss"]) for bin in bins],
        "passkey": {c["length"]: c["result"]["score"] for c in cells if c["task"] == "passkey"},
    }


def table(results: dict[str, dict]) -> str:
    """Markdown: mean loss within and beyond the old window, and passkeys found."""
    passkeys = " | ".join(f"passkey at {length:,}" for length in LENGTHS)
    lines = [
        f"| model | loss below {WINDOW:,} | loss beyond | {passkeys} |",
        "|---" * (3 + len(LENGTHS)) + "|",
    ]
    for name, result in results.items():
        within = [loss for middle, loss in result["losses"] if middle < WINDOW]
        beyond = [loss for middle, loss in result["losses"] if middle >= WINDOW]
        cells = [f"{fmean(part):.3f}" if part else "" for part in (within, beyond)]
        scores = [result["passkey"].get(length) for length in LENGTHS]
        cells += ["" if score is None else f"{score:.0f}" for score in scores]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(results: dict[str, dict], path: Path) -> None:
    """Loss by position, one line a model."""
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, result in results.items():
        if result["losses"]:
            axes.plot(*zip(*result["losses"], strict=True), marker="o", label=name)
    axes.axvline(WINDOW, color="0.5", linestyle=":", label="window as published")
    axes.set_xlabel("position in tokens")
    axes.set_ylabel("held-out loss in nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)


if __name__ == "__main__":
    main()

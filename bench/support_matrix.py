"""What works with which model and release of transformers, from the reports of the tests.

    python -m pytest tests/hf --junitxml outputs/hf.xml
    python -m bench.support_matrix outputs/hf.xml [OTHER.xml ...] > docs/support.md

Each report comes from an environment with another release. A test takes part by its marker
`support(feature)`; tests/hf/conftest.py writes feature, model and release into the report.
"""

import sys
from pathlib import Path
from xml.etree import ElementTree

Outcomes = dict[tuple[str, str, str], str]  # of (feature, model, release)

PREAMBLE = """\
# What works where

Made by `python -m bench.support_matrix` from the reports of `tests/hf` under transformers
{releases}: float32 on a CPU, tiny models with random weights. A cell is *yes* where
every test of its row passed under all of these releases: the patched model gave the tokens, logits,
loss or gradients of the stock one, or of itself without what the row is about. "-" means that no
test looks.
"""

NOT_COVERED = """\
QLoRA is bitsandbytes' NF4 with quantised scales and a LoRA adapter. On a CPU bitsandbytes computes
in PyTorch, so its layers and gradients were run, its CUDA kernels were not.

No test looks at several processes (FSDP, DeepSpeed, tensor parallelism), CUDA graphs, or a model
spread over several devices. Where the `lm_head` has an adapter or is offloaded, the loss without
logits refuses: use `cross_entropy=False`.
"""


def read(reports: list[str]) -> Outcomes:
    """The worst outcome of the tests of each cell: "yes", "not run" or "fails"."""
    outcomes: Outcomes = {}
    ranks = ("yes", "not run", "fails")
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            about = {each.get("name"): each.get("value", "") for each in case.iter("property")}
            if "feature" not in about:
                continue
            tags = {child.tag for child in case}
            outcome = "fails" if tags & {"failure", "error"} else "yes"
            outcome = "not run" if "skipped" in tags else outcome
            cell = (about["feature"], about["model"], about["transformers"])
            outcomes[cell] = max(outcome, outcomes.get(cell, "yes"), key=ranks.index)
    return outcomes


def table(outcomes: Outcomes) -> str:
    """Markdown: a row for each feature, a column for each model."""
    features, models, releases = (list(dict.fromkeys(part)) for part in zip(*outcomes, strict=True))
    models.sort()

    def cell(feature: str, model: str) -> str:
        found = {each: outcomes.get((feature, model, each), "-") for each in releases}
        if len(set(found.values())) == 1:
            return found[releases[0]]
        return ", ".join(f"{outcome} ({release})" for release, outcome in found.items())

    rows = [["", *models], ["---"] * (len(models) + 1)]
    rows += [[feature, *(cell(feature, model) for model in models)] for feature in features]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    preamble = PREAMBLE.format(releases=" and ".join(sorted(releases)))
    return f"{preamble}\n{lines}\n\n{NOT_COVERED}"


def main() -> None:
    reports = sys.argv[1:]
    missing = [report for report in reports if not Path(report).is_file()]
    if not reports or missing:
        sys.exit(f"reports of pytest --junitxml are wanted; missing: {missing or 'all'}")
    outcomes = read(reports)
    if not outcomes:
        sys.exit(f"no test in {', '.join(reports)} carries the marker support")
    print(table(outcomes), end="")


if __name__ == "__main__":
    main()

"""What works with which model and release of transformers, from the reports of the tests.

    python -m pytest tests/hf -m support --junitxml outputs/default.xml
    python -m bench.support_matrix outputs/default.xml [OTHER.xml ...] > docs/support.md

Each report comes from another environment. A test takes part by its marker `support(feature)`;
tests/hf/conftest.py writes feature, model and versions into the report.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

Outcomes = dict[tuple[str, str, str], str]  # of (feature, model, release)
Rows = list[list[str]]
PACKAGES = ("torch", "triton", "transformers", "accelerate", "peft", "datasets", "numpy")

PREAMBLE = """\
# What works where

Made by `python -m bench.support_matrix` from the reports of `pytest tests/hf -m support` in these
environments:

{stacks}

`make test`, `make test-oldest` and `make test-gpu-stack` make the first three again, from the
versions in `constraints/`, and run all tests there; the second holds the lower end of every range
in `pyproject.toml`, the third is what machines with a GPU have. Others hold upper ends.
`python -m lrk.env` says what of an installation lies outside of the ranges, and whether generation
is right in it.

A release of transformers whose modules take arguments by other names, rotate by another function or
read what lrk does not know is refused: `lrk.patch` raises one sentence that names class, argument
and release, and patches nothing. What transformers' own tests say of patched models:
[transformers_tests.md](transformers_tests.md).

## Features

Under transformers {releases}.

Float32 on a CPU, tiny models with random weights. A cell is *yes* where every test of its row
passed under all of these releases: the patched model gave the tokens, logits, loss or gradients of
the stock one, or of itself without what the row is about. *refused* is one sentence that says what
to do instead; *not run*, that a dependency has it not. "-" means that no test looks.

The tests of llama, mistral and qwen2 are part of every run; of the other types about a third is,
and all of them is what the command above runs. An attention of transformers is patched by another
function inside its own forward ([architecture.md](architecture.md#the-patch)), so a further type is
a line in `lrk/hf/architectures.py`.
"""

NOT_COVERED = """\
QLoRA is bitsandbytes' NF4 with quantised scales and a LoRA adapter. On a CPU bitsandbytes computes
in PyTorch, so its layers and gradients were run, its CUDA kernels were not. Where the processor has
AVX512-BF16, bitsandbytes 0.50 rewrites its layers at an evaluation and passes no gradients through
them afterwards, patched or not; `lrk-train` prevents that.

All this is one process. Several (DDP, FSDP2, ZeRO, shared samples, a head divided by rows) have
tests of their own, on gloo: [scale.md](scale.md). No test looks at CUDA graphs.

Refused, with one sentence that says what to do instead:

- the loss without logits where `lm_head` is of 4 or 8 bits, or has another adapter than
  LoRA or `modules_to_save` (DoRA and other variants of LoRA, trainable tokens, adapters chosen row
  by row): use `cross_entropy=False`;
- padding between the tokens of a row in a compiled model, in `lrk.decode`, under another's
  attention, and in an encoder: pad on the left or on the right;
- padding and `cu_seq_lens_q` at once, and positions that start again without `cu_seq_lens_q`;
- attention dropout and `output_attentions` in the config; as an argument, `output_attentions` gives
  None with a warning, as under sdpa;
- an `attn_implementation` beside an `attention` that would replace it, in
  `AutoLrkModelForCausalLM` and `apply_lrk_to_*`;
- norms and MLPs in tiles where experts choose their tokens, and several layers under a checkpoint
  where layers have RoPE parameters of their own: leave `tile_tokens` at 0, `layers_per_checkpoint`
  at 1;
- SelfExtend, STRING and DCA where an attention does more than Llama's (norms of queries and keys,
  one projection for all, sinks, interleaved pairs);
- a RoPE whose frequencies are not those of transformers (`partial_rotary_factor` with a `rope_type`
  other than default), and `lrk.decode.pcd` where they depend on the length of the text.

With LoRA on `lm_head` the loss forms the gradient of all of `lm_head`'s weights, as without LoRA.
"""


def read(reports: list[str]) -> Outcomes:
    """The worst outcome of the tests of each cell; "refused" is what a test may say of itself."""
    outcomes: Outcomes = {}
    ranks = ("yes", "refused", "not run", "fails")
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            about = {each.get("name"): each.get("value", "") for each in case.iter("property")}
            if "feature" not in about:
                continue
            tags = {child.tag for child in case}
            outcome = "fails" if tags & {"failure", "error"} else about.get("outcome", "yes")
            outcome = "not run" if "skipped" in tags else outcome
            cell = (about["feature"], about["model"], about["transformers"])
            outcomes[cell] = max(outcome, outcomes.get(cell, "yes"), key=ranks.index)
    return outcomes


def stacks(reports: list[str]) -> Rows:
    """By report, the versions in its environment, and how the tests of `tests/hf` ended."""
    rows = []
    for report in reports:
        versions: dict[str | None, str] = {}
        ended: Counter[str] = Counter()
        for case in ElementTree.parse(report).iter("testcase"):
            if not case.get("classname", "").startswith("tests.hf"):
                continue
            tags = {child.tag for child in case}
            ended["failed" if tags & {"failure", "error"} else "".join(tags & {"skipped"})] += 1
            versions |= {each.get("name"): each.get("value", "") for each in case.iter("property")}
        counts = [str(ended[outcome]) for outcome in ("", "failed", "skipped")]
        rows.append([versions.get(name, "?") for name in ("Python", *PACKAGES)] + counts)
    return [["Python", *PACKAGES, "passed", "failed", "skipped"], *rows]


def document(reports: list[str], outcomes: Outcomes) -> str:
    """The whole of docs/support.md."""
    releases = sorted({release for _, _, release in outcomes})
    preamble = PREAMBLE.format(stacks=markdown(stacks(reports)), releases=", ".join(releases))
    return f"{preamble}\n{markdown(table(outcomes))}\n\n{NOT_COVERED}"


def markdown(rows: Rows) -> str:
    """A table; the first row is its head."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def table(outcomes: Outcomes) -> Rows:
    """A row for each feature, a column for each model."""
    features, models, releases = (list(dict.fromkeys(part)) for part in zip(*outcomes, strict=True))
    models.sort()

    def cell(feature: str, model: str) -> str:
        found = {each: outcomes.get((feature, model, each), "-") for each in releases}
        if len(set(found.values())) == 1:
            return found[releases[0]]
        return ", ".join(f"{outcome} ({release})" for release, outcome in found.items())

    rows = [[feature, *(cell(feature, model) for model in models)] for feature in features]
    return [["", *models], *rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.support_matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("reports", nargs="+", metavar="REPORT", help="of pytest --junitxml")
    reports = parser.parse_args().reports
    missing = [report for report in reports if not Path(report).is_file()]
    if missing:
        sys.exit(f"reports of pytest --junitxml are wanted; missing: {missing}")
    outcomes = read(reports)
    if not outcomes:
        sys.exit(f"no test in {', '.join(reports)} carries the marker support")
    print(document(reports, outcomes), end="")


if __name__ == "__main__":
    main()

"""The pictures of the documentation, for light pages and for dark ones, made again in a minute.

    python -m studies.pictures                 # all
    python -m studies.pictures proof memory    # some

`idea` and `positions` are drawn by the samplers, `memory` by `lrk-plan --compare`, whatever else by
the study or example that it shows, from the results in `studies/results`.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from examples import demo, idea, positions
from lrk.picture import light_and_dark
from lrk.plan.command import main as lrk_plan
from lrk.positions import SAMPLERS
from studies import impactful_tokens
from studies.proof import report as proof
from studies.real_model import figures as real_model
from studies.real_text import report as real_text

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = Path(__file__).parent / "results"
MEMORY = (
    *("--model", "llama-3-8b", "--length", "39322", "--compare"),
    *("--tile_tokens", "2048", "--layers_per_checkpoint", "2"),
)
"""The step of the preset llama-3-8b-131072."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder to write to")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.names if name not in PICTURES]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(PICTURES)}")
    for name in arguments.names or PICTURES:
        for picture in light_and_dark(arguments.docs / f"{name}.png"):
            PICTURES[name](picture)
            print(picture)


def _results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@functools.cache
def _positions() -> dict[str, list[Tensor]]:
    return {name: positions.draw(name) for name in SAMPLERS}


def _memory(picture: Path) -> None:
    if status := lrk_plan([*MEMORY, "--plot", str(picture)]):
        raise SystemExit(status)


def _demo(picture: Path) -> None:
    losses = _results("demo")["losses"]
    by_length = {
        name: {int(length): loss for length, loss in row.items()} for name, row in losses.items()
    }
    demo.draw(by_length, picture)


PICTURES: dict[str, Callable[[Path], object]] = {
    "idea": idea.draw,
    "positions": lambda picture: positions.draw_samplers(_positions(), picture),
    "memory": _memory,
    "proof": lambda picture: proof.draw(_results("proof"), picture),
    "real_text": lambda picture: real_text.draw(_results("real_text"), picture),
    "real_model": lambda picture: real_model.draw_before_and_after(
        _results("real_model_cpu")["rows"], 8192, picture
    ),
    "demo": _demo,
    "impactful_tokens": lambda picture: impactful_tokens.draw(
        _results("impactful_tokens")["lifts"], picture
    ),
}


if __name__ == "__main__":
    main()

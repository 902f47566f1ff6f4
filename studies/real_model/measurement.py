"""Reading by `lrk-eval`, in ordinary positions, and what is kept of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrk.eval.cells import ResultFolder
from lrk.eval.command import main as lrk_eval
from lrk.eval.tasks import GRID
from studies.real_model.product import call
from studies.real_model.scale import Scale
from studies.real_model.texts import HELD_OUT

PASSKEY = "passkey"
LOSSES = "loss_by_position"
RETRIEVAL = (PASSKEY, GRID)
TASKS = (*RETRIEVAL, LOSSES)

BATCH_TOKENS = 5 * 131_072
"""Of prompts that are answered together: their keys and values have 15 GiB in bf16."""
SEED = 42


def measure(
    study: Path,
    model: Path,
    folder: Path,
    scale: Scale,
    seed: int,
    device: str,
    lengths: Sequence[int],
    tasks: Sequence[str] = TASKS,
    decoding: str | None = None,
) -> list[dict[str, Any]]:
    """Read at some lengths; cells that a killed start has finished in `folder` are not repeated.

    All models are asked the same with a seed, and read the same texts with all seeds.

    Returns:
        The cells of these lengths.
    """
    words = [
        *("--model", str(model)),
        *("--device", device),
        *("--dtype", "float32" if device == "cpu" else "bfloat16"),
        *("--output_dir", str(folder)),
        *("--tasks", *tasks),
        *("--lengths", *map(str, lengths)),
        *("--seed", str(SEED + seed)),
        *("--trials", str(scale.trials)),
        *("--grid_trials", str(scale.needles)),
        *("--depths", *map(str, scale.depths)),
        *("--max_new_tokens", str(scale.answer_tokens)),
        *("--batch_size", str(1 if device == "cpu" else max(1, BATCH_TOKENS // max(lengths)))),
        *("--data", str(study / HELD_OUT)),
        *("--documents", str(scale.documents)),
        *("--document_length", str(scale.target)),
        *("--position_bins", str(scale.bins)),
    ]
    call(lrk_eval, words if decoding is None else [*words, "--decoding", decoding])
    found = ResultFolder(folder).read_all()
    return [kept(cell) for cell in found if cell["length"] in lengths]


def kept(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell of `lrk-eval` without settings and machine, which the results have."""
    result = cell["result"]
    what: dict[str, Any]
    if cell["task"] == LOSSES:
        bins = [{name: part[name] for name in ("start", "stop", "loss")} for part in result["bins"]]
        what = {"loss": result["loss"], "tokens": result["tokens"], "bins": bins}
    else:
        what = {
            "trials": [
                {name: trial[name] for name in ("trial", "depth", "score", "answer")}
                | {"reference": trial["references"][0]}
                for trial in result["trials"]
            ]
        }
    return {
        "task": cell["task"],
        "length": cell["length"],
        "depth": cell["depth"],
        "seconds": cell["seconds"],
        "weights": cell["settings"]["weights"],
        **what,
    }

"""The study at a size that says nothing, on a CPU, within a minute: every line of it.

The real tokenizer, text and weights, but two layers, and a window of 128 tokens that is said to be
the model's. It is stopped before the first piece, then somewhere, then goes on to the end of a
seed, and begins with the next as far as its budget goes.
"""

from pathlib import Path

from studies.real_model import report, texts
from studies.real_model.budget import Budget
from studies.real_model.models import MODELS
from studies.real_model.results import Results
from studies.real_model.scale import REHEARSAL
from studies.real_model.study import Study, start

STARTS = (((0, 1), 1e-9), ((0, 1), 12.0), ((0,), None), ((0, 1), 4.0))
"""Seeds and seconds of each start."""
LEFT_OUT = ("PoSE", "PoSE, reach and temperature")
"""Models that differ in arguments alone from others that are rehearsed."""


def rehearse(folder: Path, weights: Path | None) -> None:
    """Calibrate, train, measure, decode, go on, and make tables and pictures.

    Args:
        folder: for all that it writes; the results are `rehearsal.json`, the report `report`.
        weights: as in `start`.
    """
    out = folder / "rehearsal.json"
    settings = REHEARSAL.settings() | {"device": "cpu", "texts": texts.fingerprint()}
    models = [model for model in MODELS if model.name not in LEFT_OUT]
    for seeds, seconds in STARTS:
        results = Results(out, settings, rehearsal=True)
        study = Study(folder / "rehearsal", REHEARSAL, seeds, "cpu", True, results, models)
        start(study, weights, Budget(seconds))
    report.main([str(out), "--docs", str(folder / "report")])

"""Evidence that is made up, for rules to be tried on: nothing here was measured."""

from collections.abc import Callable
from typing import Any

import pytest

from lrk.train.auto_recipe.evidence import Comparison, Evidence, Row

STUDIES = {"quotes": "proof", "variables": "proof", "text": "real text"}
WINDOWS = {"proof": 128, "real text": 512}

# Mean at 8 and at 16 times the window, of both tasks of study `proof`.
METHODS = {
    "full length": (97.0, 80.0),
    "short training": (50.0, 10.0),
    "PoSE": (90.0, 60.0),
    "PoSE + reach": (91.0, 70.0),
    "PoSE + temperature": (92.0, 72.0),
    "PoSE + reach + temperature": (96.0, 90.0),
    "PoSE + reach + temperature + views": (96.5, 90.0),
    "LongRecipe": (88.0, 50.0),
    "LongRecipe + reach": (89.0, 60.0),
    "LongRecipe + temperature": (90.0, 60.0),
    "LongRecipe + reach + temperature": (94.0, 88.0),
    "RandPos": (55.0, 20.0),
    "CREAM": (70.0, 30.0),
    "E2": (60.0, 15.0),
    "EndPrompt": (80.0, 25.0),
}
PLANS = {
    "theta": (94.0, 64.0),
    "linear": (94.0, 25.0),
    "ntk": (94.2, 53.0),
    "yarn": (94.3, 55.0),
    "llama3": (90.0, 70.0),
    "longrope": (99.0, 99.0),
    "cope": (94.1, 64.5),
}
LOSSES = {
    "short training": (2.000, 3.000),
    "full length": (2.010, 1.900),
    "PoSE": (2.005, 1.950),
    "PoSE + reach + temperature": (2.015, 1.940),
}
BOTH = " + reach + temperature"
# Difference and corrected p at 8 and at 16 times, on both tasks of study `proof`.
COMPARED = {
    **{
        (name + BOTH, name + part): ((4.0, 0.2), (18.0, 0.01))
        for name in ("PoSE", "LongRecipe")
        for part in (" + reach", " + temperature")
    },
    ("full length", "PoSE" + BOTH): ((1.0, 0.01), (-10.0, 0.01)),
    ("full length", "LongRecipe" + BOTH): ((3.0, 0.01), (-8.0, 0.01)),
    ("PoSE" + BOTH + " + views", "PoSE" + BOTH): ((0.5, 0.4), (0.0, 1.0)),
}

Changes = dict[str, Any]


def made_up(
    methods: Changes | None = None,
    plans: Changes | None = None,
    losses: Changes | None = None,
    compared: Changes | None = None,
) -> dict[str, Any]:
    """The content of an evidence file, with changes to the figures above; None leaves one out."""
    rows: dict[str, Any] = {}

    def put(task: str, method: str, figures: tuple[float, ...], times: tuple[int, ...]) -> None:
        study = STUDIES[task]
        for mean, each in zip(figures, times, strict=True):
            length = each * WINDOWS[study]
            rows[f"{study}/{task}/{method}/{length}"] = {
                "study": study,
                "task": task,
                "method": method,
                "length": length,
                "times_window": each,
                "mean": mean,
                "half_interval": 0.5,
                "runs": 5,
                "training_tokens": 3000 if method == "full length" else 1000,
                "training_flop": 2e12,
            }

    for method, figures in (METHODS | (methods or {})).items():
        for task in ("quotes", "variables") if figures else ():
            put(task, method, figures, (8, 16))
    for plan, figures in (PLANS | (plans or {})).items():
        put("quotes", f"PoSE, {plan}", figures, (8, 16))
    for method, figures in (LOSSES | (losses or {})).items():
        put("text", method, figures, (1, 8))
    comparisons = {
        f"proof/{task}/{better} minus {worse}/{length}": {
            "better": better,
            "worse": worse,
            "task": task,
            "length": length,
            "difference": difference,
            "low": difference - 0.5,
            "high": difference + 0.5,
            "p": p / 2,
            "p_corrected": p,
        }
        for (better, worse), figures in (COMPARED | (compared or {})).items()
        if figures
        for task in ("quotes", "variables")
        for length, (difference, p) in zip((1024, 2048), figures, strict=True)
    }
    return {
        "made_by": "a fixture, made up",
        "settings": {"reach": 2.0, "temperature_power": 1.0},
        "rows": rows,
        "comparisons": comparisons,
    }


@pytest.fixture
def content() -> Callable[..., dict[str, Any]]:
    return made_up


@pytest.fixture
def evidence() -> Callable[..., Evidence]:
    """Evidence of the figures above, with changes."""

    def make(**changes: Changes) -> Evidence:
        found = made_up(**changes)
        return Evidence(
            found["made_by"],
            found["settings"]["reach"],
            found["settings"]["temperature_power"],
            tuple(Row(name, **row) for name, row in found["rows"].items()),
            tuple(Comparison(name, **each) for name, each in found["comparisons"].items()),
        )

    return make

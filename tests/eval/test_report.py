"""The table, the means and the bins, from cells made by hand."""

from lrk.eval.heatmap import binned
from lrk.eval.report import markdown, summary


def cell(task: str, length: int, score: float, depth: float | None = None) -> dict:
    settings = dict.fromkeys(("model_config", "weights", "dtype", "seed"), "x")
    packages = {"lrk": "1", "torch": "2", "transformers": "3"}
    return {
        "task": task,
        "length": length,
        "depth": depth,
        "settings": settings | {"patched": True},
        "environment": {"packages": packages},
        "result": {"score": score, "trials": []},
    }


CELLS = [
    cell("vt", 4096, 90.0),
    cell("vt", 8192, 80.0),
    cell("fwe", 4096, 100.0),
    cell("fwe", 8192, 60.0),
    cell("fwe", 16384, 95.0),
    cell("passkey", 4096, 10.0),
    cell("niah_grid", 4096, 20.0, 0),
    cell("niah_grid", 4096, 40.0, 100),
]


def test_the_mean_is_over_tasks_of_ruler_where_all_were_run():
    found = summary(CELLS)
    assert found["ruler"]["tasks"] == ["vt", "fwe"]
    assert found["ruler"]["mean"] == {4096: 95.0, 8192: 70.0}
    assert found["ruler"]["effective_length"] == 4096
    assert found["scores"]["niah_grid"] == {4096: 30.0}


def test_the_table():
    table = markdown("model", CELLS)
    assert "| task | 4,096 | 8,192 | 16,384 |\n|---|---|---|---|\n| passkey | 10.0 |  |  |" in table
    assert "Mean of 2 of RULER's 13 tasks: 95.0 at 4,096, 70.0 at 8,192.\n" in table
    assert "Effective length by RULER's threshold of 85.6: 4,096.\n" in table
    assert "The threshold is meant for all tasks" in table


def test_no_key_token_is_no_figure():
    longppl = cell("longppl", 64, 0.0)
    longppl["result"] = {
        "key": {"loss": None, "perplexity": None, "tokens": 0},
        "all": {"loss": 1.0, "perplexity": 2.718, "tokens": 63},
    }
    table = markdown("model", [longppl])
    assert "| LongPPL | none |" in table
    assert "| key tokens in per cent | 0.000 |" in table


def test_depths_are_binned_by_tenths():
    found = binned([0.0, 0.09, 0.1, 0.55, 1.0], [100.0, 0.0, 30.0, 50.0, 70.0])
    assert found == {5.0: 50.0, 15.0: 30.0, 55.0: 50.0, 95.0: 70.0}

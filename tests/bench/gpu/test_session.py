"""What a run does with bad input, and with parts that crash, hang or lose their device."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from bench.gpu import cell, session
from bench.gpu.__main__ import main
from bench.gpu.cell import FINISHED, Cell, measure_all
from bench.gpu.results import results_in
from bench.gpu.row import BOTH, Report, Row, from_json
from bench.gpu.session import Options
from bench.gpu.stand_in import stand_in
from bench.peers import Unavailable

ROW = Row("attention", BOTH, {"S": 8, "D": 64}, "bfloat16", "lrk")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rehearse", "--budget", "0"], "--budget is 0: must be a positive number of seconds"),
        (["--rehearse", "--budget", "nan"], "--budget is nan: must be a positive number"),
        (["--rehearse", "--seed", "-1"], "--seed is -1: must be at least 0"),
        ([], "no GPU is here: --rehearse runs the same on a CPU"),
    ],
)
def test_bad_input(words, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(session.torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path / "results"), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_out_is_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["--out", str(tmp_path / "file"), "--rehearse"]) == 2
    assert "must be a folder, or a name for a new one" in capsys.readouterr().err


def options(folder, **changes):
    usual = Options(folder, ("card",), 60.0, rehearse=True, seed=0, commit=None)
    return replace(usual, **changes)


def cells(*calls):
    return [
        Cell(replace(ROW, variant=str(number)), lambda number=number, call=call: call(number))
        for number, call in enumerate(calls)
    ]


def good(number):
    yield replace(ROW, variant=str(number), ok=True)


def raising(error):
    def call(number):
        raise error
        yield

    return call


@pytest.fixture
def on_a_stand_in():
    with stand_in():
        yield


def report(folder):
    return Report(folder / "part.json", {"part": "correct", "rehearsal": True})


def test_what_goes_wrong_in_a_cell_stays_there(tmp_path, on_a_stand_in):
    found = report(tmp_path)
    some = cells(good, raising(ValueError("no\n  luck")), raising(Unavailable("no GPU")), good)
    assert measure_all(some, found, time.monotonic() + 60) == FINISHED
    assert [row.ok for row in found.rows] == [True, False, None, True]
    assert found.rows[1].note == "ValueError: no luck"
    assert found.rows[2].note == "left out: no GPU"
    written = json.loads((tmp_path / "part.json").read_text())["rows"]
    assert [from_json(values) for values in written] == found.rows


def test_a_peers_fault_is_not_ours(tmp_path, on_a_stand_in):
    found = report(tmp_path)
    peer = Cell(replace(ROW, provider="Liger"), lambda: raising(RuntimeError("none"))(0))
    measure_all([peer], found, time.monotonic() + 60)
    assert found.rows[0].ok is None
    assert found.rows[0].note


def test_out_of_time(tmp_path, on_a_stand_in):
    found = report(tmp_path)
    assert measure_all(cells(good, good), found, time.monotonic() - 1) == FINISHED
    assert {row.note for row in found.rows} == {"left out: out of time"}


def test_a_lost_device_is_gone_on_without(tmp_path, on_a_stand_in, monkeypatch):
    """CUDA answers every call after an illegal access with it, so a new process takes the rest."""
    alive = iter([True, True, False, False, True])
    monkeypatch.setattr(cell, "_device_answers", lambda: next(alive))
    found = report(tmp_path)
    lost = raising(RuntimeError("an illegal memory access"))
    assert measure_all(cells(good, good, lost, good), found, time.monotonic() + 60) == 3
    assert "the device is lost: RuntimeError: an illegal" in found.rows[-1].note
    assert measure_all(cells(good, good, lost, good), found, time.monotonic() + 60, first=3) < 0


def a_part(code):
    """In the place of a part, a program."""
    return lambda self, first: subprocess.Popen(
        [sys.executable, "-c", f"first = {first}\n{code}"], start_new_session=True
    )


def test_a_crash_costs_its_part_only(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(session._Process, "_start", a_part("import os; os.abort()"))
    assert session.run_session(options(tmp_path)) == 1
    (row,) = results_in(tmp_path).rows["card"]
    assert row.ok is False
    assert row.note == "ended with status -6"
    assert "1 wrong" in capfd.readouterr().out


def test_a_hang_costs_its_part_only(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "_GRACE", 0.1)
    monkeypatch.setattr(session._Process, "_start", a_part("import time; time.sleep(60)"))
    start = time.monotonic()
    assert session.run_session(options(tmp_path, budget=1.0, parts=("card", "correct"))) == 1
    assert time.monotonic() - start < 20
    rows = results_in(tmp_path).rows
    assert {part: some[0].note for part, some in rows.items()} == {
        "card": "killed: out of time",
        "correct": "killed: out of time",
    }


def test_a_part_that_lost_its_device_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "card.json"
    code = f"""
import json, pathlib, sys
path = pathlib.Path({str(path)!r})
rows = json.loads(path.read_text())["rows"] if path.exists() else []
rows.append({{"op": "copy", "pass": "both", "shape": {{}}, "dtype": "", "provider": str(first)}})
path.write_text(json.dumps({{"part": "card", "rows": rows, "go_on_with": 7}}))
sys.exit(0 if first else 3)
"""
    monkeypatch.setattr(session._Process, "_start", a_part(code))
    assert session.run_session(options(tmp_path)) == 0
    assert [row.provider for row in results_in(tmp_path).rows["card"]] == ["0", "7"]


def test_shares_of_the_time():
    """What an earlier part left over goes to the later ones."""
    weights = {"kernels": 2, "tiles": 1, "step": 1}
    seconds = session._share(time.monotonic() + 100, weights, "kernels")
    assert 49 < seconds <= 50
    seconds = session._share(time.monotonic() + 100, {"step": 1}, "step")
    assert 99 < seconds <= 100


@pytest.mark.parametrize(
    ("changes", "is_timed"),
    [
        ({}, False),
        ({"provider": "Liger"}, True),
        ({"dtype": "float32"}, True),
        ({"op": "rope"}, True),
        ({"shape": {"S": 9, "D": 128}}, True),
        ({"provider": "lrk, told of documents"}, False),
        ({"op": "step", "shape": {"S": 9}}, True),
    ],
)
def test_nothing_wrong_is_timed(changes, is_timed, tmp_path):
    wrong = Report(tmp_path / "correct.json", {})
    wrong.add(replace(ROW, ok=False))
    timed = Cell(replace(ROW, **changes), lambda: iter([replace(ROW, milliseconds=1.0)]))
    (row,) = session._unless_red(timed, "kernels", tmp_path).measure()
    assert (row.milliseconds is not None) is is_timed
    assert bool(row.note) is not is_timed

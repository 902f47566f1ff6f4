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
from bench.gpu.row import BOTH, Report, Row, as_json, from_json
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


def test_out_cannot_be_made(capsys):
    assert main(["--out", "/proc/results", "--rehearse", "--parts", "card"]) == 2
    assert "bench.gpu: [Errno" in capsys.readouterr().err


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


def test_a_lost_device_ends_the_process(tmp_path, on_a_stand_in, monkeypatch):
    """CUDA answers every call after an illegal access with it, so a new process takes the rest."""
    monkeypatch.setattr(cell, "_device_answers", lambda: False)
    found = report(tmp_path)
    lost = raising(RuntimeError("an illegal memory access"))
    assert measure_all(cells(good, good, lost, good), found, time.monotonic() + 60) == 2
    assert found.rows[-1].note == "RuntimeError: an illegal memory access"
    assert found.header["at_work_on"]["number"] == 2
    rest = cells(good, good, lost, good)
    assert measure_all(rest, found, time.monotonic() + 60, first=3) == FINISHED
    assert [row.variant for row in found.rows] == ["0", "1", "2", "3"]


def a_part(monkeypatch, folder, code, provider="lrk"):
    """In the place of each part a program, at work on the cell that it was told to begin with."""
    what = as_json(replace(ROW, provider=provider))

    def start(self, first):
        program = f"""
import json, os, pathlib, sys, time
first, path = {first}, pathlib.Path({str(self._path)!r})
content = json.loads(path.read_text()) if first else {{"part": {self._part!r}, "rows": []}}
content["at_work_on"] = {{"number": first, "what": {what!r}}}
path.write_text(json.dumps(content))
{code}
"""
        return subprocess.Popen([sys.executable, "-c", program], start_new_session=True)

    monkeypatch.setattr(session._Process, "_start", start)


@pytest.mark.parametrize(("provider", "is_red"), [("lrk", True), ("Liger", False)])
def test_a_crash_costs_its_cell(provider, is_red, tmp_path, monkeypatch, capfd):
    """Only ours is red; the rest is gone on with."""
    a_part(monkeypatch, tmp_path, "os.abort() if first < 2 else sys.exit(0)", provider)
    assert session.run_session(options(tmp_path)) == int(is_red)
    rows = results_in(tmp_path).rows["card"]
    assert [row.note for row in rows] == ["ended with status -6"] * 2
    assert {row.ok for row in rows} == {False if is_red else None}
    assert f"{2 * is_red} wrong" in capfd.readouterr().out


def test_a_part_that_raises_is_red(tmp_path, monkeypatch):
    """Before its first cell, as where an import fails."""
    monkeypatch.setattr(
        session._Process,
        "_start",
        lambda self, first: subprocess.Popen([sys.executable, "-c", "raise ImportError"]),
    )
    assert session.run_session(options(tmp_path)) == 1
    (row,) = results_in(tmp_path).rows["card"]
    assert (row.ok, row.note) == (False, "ended with status 1")


def test_a_hang_costs_its_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "_SILENCE_OF_OTHERS", 1.0)
    a_part(monkeypatch, tmp_path, "time.sleep(60) if first == 0 else sys.exit(0)")
    start = time.monotonic()
    assert session.run_session(options(tmp_path)) == 1
    assert time.monotonic() - start < 30
    (row,) = results_in(tmp_path).rows["card"]
    assert row.note == "killed: silent for 1 s"


def test_no_part_takes_the_time_of_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "_GRACE", 0.1)
    a_part(monkeypatch, tmp_path, "time.sleep(60)")
    start = time.monotonic()
    some = options(tmp_path, budget=1.0, parts=("card", "correct"))
    assert session.run_session(some) == 0
    assert time.monotonic() - start < 20
    rows = results_in(tmp_path).rows
    assert {part: each[0].note for part, each in rows.items()} == {
        "card": "killed: out of time",
        "correct": "killed: out of time",
    }


def test_a_part_that_lost_its_device_goes_on(tmp_path, monkeypatch):
    a_part(monkeypatch, tmp_path, "sys.exit(0 if first else 3)")
    assert session.run_session(options(tmp_path)) == 1
    (row,) = results_in(tmp_path).rows["card"]
    assert (row.ok, row.note) == (False, "the device was lost")


def test_a_way_to_launch_blocks_no_time(tmp_path):
    wrong = Report(tmp_path / "correct.json", {})
    wrong.add(replace(ROW, ok=False, variant="torch.compile"))
    timed = Cell(ROW, lambda: iter([replace(ROW, milliseconds=1.0)]))
    (row,) = session._unless_wrong(timed, session._wrong_in(tmp_path)).measure()
    assert row.milliseconds == 1.0


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
    (row,) = session._unless_wrong(timed, session._wrong_in(tmp_path)).measure()
    assert (row.milliseconds is not None) is is_timed
    assert bool(row.note) is not is_timed

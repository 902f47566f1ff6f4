"""Table, aims, comparison and page, from results as a GPU would leave them."""

import json
import re
from dataclasses import replace

from bench.case import MODELS
from bench.gpu.aims import aims
from bench.gpu.compare import compare
from bench.gpu.compare import main as compare_main
from bench.gpu.docs import main as docs_main
from bench.gpu.docs import page
from bench.gpu.results import Results
from bench.gpu.row import BACKWARD, BOTH, FORWARD, Report, Row, as_json, from_json
from bench.gpu.sizes import REAL
from bench.gpu.step import gpu_of_card
from bench.gpu.table import MAX_LINES, table

B, H, HK, D, S = REAL.published
PUBLISHED = {"B": B, "S": S, "H": H, "Hk": HK, "D": D, "documents": 1}
LLAMA = MODELS["llama-3-8b"]
LOSS = {"N": 16_384, "W": LLAMA.hidden, "V": LLAMA.vocab}
DECODING = {"B": 1, "S": 1, "Sk": 131_072, "H": 32, "Hk": 8, "D": 128}
ROPE = {"B": 1, "S": 39_322, "H": 32, "Hk": 8, "D": 128}
HEADER = {"card": "NVIDIA H100", "commit": "abc", "packages": {"torch": "2.11"}, "rehearsal": False}


def row(op, shape, direction, milliseconds, provider="lrk", **values):
    return Row(op, direction, shape, "bfloat16", provider, milliseconds=milliseconds, **values)


def results(forward=5.5, backward=25.0, planned=38.0):
    kernels = [
        row("attention", PUBLISHED, FORWARD, forward, tflop_per_s=600.0),
        row("attention", PUBLISHED, BACKWARD, backward, tflop_per_s=400.0),
        row("attention", PUBLISHED, BOTH, forward + backward, tflop_per_s=500.0),
        row("attention", PUBLISHED, BOTH, 21.0, "SDPA cuDNN", tflop_per_s=700.0),
        row("attention", PUBLISHED, BOTH, 1.0, "lrk, told of documents"),
        row("linear_cross_entropy", LOSS, BOTH, 80.0),
        row("linear_cross_entropy", LOSS, BOTH, 185.0, "Liger"),
        row("linear_cross_entropy", LOSS, BOTH, 66.0, "its three products alone"),
        row("decoding", DECODING, FORWARD, 0.2, gb_per_s=2700.0, share=0.9),
        row("decoding", DECODING, FORWARD, 0.19, "SDPA flash", gb_per_s=2850.0, share=0.95),
        row("rope", ROPE, FORWARD, 0.26, gb_per_s=2500.0),
        row("rope", ROPE, FORWARD, 0.25, "copy of the same bytes", gb_per_s=2600.0),
        replace(row("rope", ROPE, BOTH, None, "Liger"), note="left out: not installed"),
    ]
    step = row("step", {"B": 1, "S": 39_322, "layers": 32}, BOTH, 8600.0, mfu=0.392)
    steps = [replace(step, peak_mib=38.7 * 1024, planned_mib=planned * 1024)]
    return Results({"kernels": HEADER, "step": HEADER}, {"kernels": kernels, "step": steps})


def met(found):
    return [each.met for each in aims(found)]


def test_aims():
    assert met(results()) == [True, False, True, True, True, True, True, True]
    assert met(results(forward=6.5, backward=20.0))[:2] == [False, True]
    assert met(results(planned=36.0))[-1] is False
    assert met(Results({}, {})) == [None] * 8
    rehearsed = {"kernels": HEADER | {"rehearsal": True}}
    assert met(Results(rehearsed, results().rows)) == [None] * 8
    assert "MISSED" in str(aims(results())[1])
    assert "decoding at 131,072 keys at most 1.5" in str(aims(results())[5])
    assert "1.11, met" in str(aims(results())[5])


def test_table_names_the_fastest_peer_and_the_bound():
    text = table(results())
    assert "lrk 5.5 / 25 / 30.5 ms, 500 TFLOP/s; SDPA cuDNN 21 ms, lrk 1.45 of that" in text
    assert "Liger 185 ms, lrk 0.43 of that; its three products alone 66 ms, lrk 1.21" in text
    assert "D128: lrk 0.2 / - / - ms, 2700 GB/s (90% of the ceiling); SDPA flash 0.19 ms" in text
    assert "step: lrk S39322: 8.6 s, MFU 39.2%, 38.70 GiB, planned 38.00 (-1.8%)" in text


def test_table_is_short_and_wrong_comes_first():
    wrong = [replace(ROW, variant=str(i), ok=False, note="n" * 500) for i in range(300)]
    text = table(Results({"correct": HEADER}, {"correct": wrong}))
    lines = text.splitlines()
    assert len(lines) <= MAX_LINES
    assert lines[1] == "300 wrong"
    assert max(map(len, lines)) <= 200


ROW = Row("attention", BOTH, {"S": 8}, "bfloat16", "lrk")


def test_rows_survive_their_file():
    for each in (
        ROW,
        replace(ROW, ok=False, error=0.0, note="x"),
        Row("compile", BOTH, {}, "", ""),
    ):
        assert from_json(as_json(each)) == each
    assert as_json(ROW)["pass"] == BOTH


def test_compare(tmp_path, capsys):
    lines = compare(results(), results(backward=50.0))
    assert lines[3].startswith(" 2.000")
    assert "backward" in lines[3]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        report = Report(tmp_path / name / "kernels.json", dict(HEADER))
        for each in results().rows["kernels"]:
            report.add(each)
    assert compare_main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert " 1.000" in capsys.readouterr().out
    assert compare_main([str(tmp_path / "a"), str(tmp_path)]) == 2
    assert "holds no results" in capsys.readouterr().err


STUDY = {
    "settings": {
        "window": 128, "target": 256, "seconds": 30, "documents": 1, "device": "cuda", "depths": [0]
    },
    "rehearsal": False,
    "environments": [{"gpus": ["H100"], "packages": HEADER["packages"] | {"transformers": "5"},
                      "commit": "abc"}],
    "trainings": [],
    "measurements": [
        {"model": name, "seed": 0, "seconds": 1.0, "cells": [
            {"task": "passkey", "length": 256, "depth": None,
             "trials": [{"trial": n, "depth": 0.5, "score": float(n < hits)} for n in range(20)]}
        ]}
        for name, hits in (("full length", 20), ("LongRecipe", 19))
    ],
}  # fmt: skip


def test_page(tmp_path):
    """Every card's operations, study and pictures, from files alone."""
    folder = tmp_path / "results" / "nvidia-h100"
    folder.mkdir(parents=True)
    for part, rows in results().rows.items():
        report = Report(folder / f"{part}.json", dict(HEADER))
        for each in rows:
            report.add(each)
    (folder / "real_model.json").write_text(json.dumps(STUDY))
    (tmp_path / "docs").mkdir()
    words = ["--results", str(tmp_path / "results"), "--docs", str(tmp_path / "docs")]
    assert docs_main(words) == 0
    text = (tmp_path / "docs/gpu_results.md").read_text()
    assert "| attention B4 H48 D128 S8192 forward at most 6 ms | 5.50 ms | yes |" in text
    assert "Not timed: Liger: not installed." in text
    assert "| lrk | 39,322 |  | 8.6 | 39.2% | 38.70 | 38.00 |" in text
    assert "### A real model" in text
    assert "| LongRecipe | 95 [76–99] of 20 |" in text
    linked = re.findall(r"!\[.*\]\((.*)\)", text)
    assert "gpu_results/nvidia-h100/attention.png" in linked
    assert len(linked) > 1
    for picture in linked:
        assert (tmp_path / "docs" / picture).stat().st_size > 5_000

    (folder / "real_model.json").write_text(json.dumps(STUDY | {"rehearsal": True}))
    assert docs_main(words) == 2


def test_page_of_nothing():
    assert "No GPU has run this yet" in page([], {})


def test_several_cards_in_a_folder_are_all_named():
    headers = {"kernels": HEADER, "tiles": dict(HEADER), "step": HEADER | {"card": "NVIDIA H200"}}
    heading = Results(headers, {}).heading
    assert heading.count("NVIDIA H100") == heading.count("NVIDIA H200") == 1


def test_names_of_cards():
    assert gpu_of_card("NVIDIA H100 80GB HBM3") == "h100"
    assert gpu_of_card("NVIDIA H200") == "h200"
    assert gpu_of_card("NVIDIA GeForce RTX 4090") == "rtx4090"
    assert gpu_of_card("Tesla T4") is None

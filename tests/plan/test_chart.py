from dataclasses import replace

import pytest

from lrk.plan.chart import draw_comparison, draw_plan
from lrk.plan.ledger import BACKWARD, DEVICE_PARTS, FORWARD, HOST, Moment, Usage
from lrk.plan.planner import GIB, Plan
from lrk.plan.settings import Settings


@pytest.fixture
def plan() -> Plan:
    parts = dict.fromkeys((*DEVICE_PARTS, HOST), 0) | {"weights": 15 * GIB}
    usages = [
        Usage(Moment(FORWARD), parts),
        Usage(Moment(BACKWARD), parts | {"recomputation": 45 * GIB}),
    ]
    return Plan("llama-3-8b", Settings(length=39322), usages, 0, {})


def test_phases_and_their_parts(plan, tmp_path, drawn_texts):
    draw_plan(plan, tmp_path / "plan.png")
    expected = {"llama-3-8b, 39,322 tokens: 60.0\u00a0GiB at the peak", "forward", "backward"}
    assert expected | {" 15.0", " 60.0", "weights", "recomputation"} < set(drawn_texts)
    assert "gradients" not in drawn_texts, "a part without bytes needs no colour"
    assert "h100: 79 GiB" not in drawn_texts, "far beyond the bars"


def test_a_comparison_has_the_memory_of_the_gpu(plan, tmp_path, drawn_texts):
    parts = plan.usages[0].parts | {"loss_workspace": 90 * GIB}
    stock = replace(plan, usages=[Usage(Moment("loss"), parts)])
    draw_comparison({"lrk": plan, "stock": stock}, tmp_path / "plans.png")
    expected = {"lrk", "stock\ntransformers", "h100: 79 GiB", " 60.0", " 105.0"}
    assert expected < set(drawn_texts)
    assert " ".join(drawn_texts).replace("\n", " ").count("60\u00a0GiB, not 105") == 1

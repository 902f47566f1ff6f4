"""What cells cost beside each other."""

import pytest

from lrk.eval.arguments import EvalArguments
from lrk.eval.cells import LM_EVAL, Cell, cells_of
from lrk.eval.cost import cost
from lrk.share import Share

WIDTH = 100


def read(*contexts: int) -> int:
    return sum(tokens * (12 * WIDTH + tokens) for tokens in contexts)


@pytest.fixture
def arguments() -> EvalArguments:
    return EvalArguments(
        model="m",
        output_dir="o",
        tasks=["passkey", "niah_grid", "fwe", "perplexity", "loss_by_position", "longppl"],
        lengths=[4000, 8000, 16000],
        data=["d"],
        document_length=17000,
        stride=2000,
        short_context=1000,
        short_stride=500,
    )


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("passkey", read(4000)),
        ("loss_by_position", read(4000)),
        # Windows that begin at 0, 2,000, ..., 14,000; the last ends with the text.
        ("perplexity", read(*[4000] * 7, 3000)),
        # Short contexts of 1,500 tokens begin at 0, 500, ..., 2,500.
        ("longppl", read(4000, *[1500] * 6)),
    ],
)
def test_what_a_cell_reads(arguments, task, expected):
    assert cost(Cell(task, 4000), 3, arguments, WIDTH) == 3 * expected


def test_a_task_of_unknown_size(arguments):
    assert cost(Cell(LM_EVAL, lm_eval_task="mmlu"), 1, arguments, WIDTH) == 0


@pytest.mark.parametrize("count", [2, 4, 8])
def test_jobs_take_as_long_as_each_other(arguments, count):
    trials = {"passkey": 50, "niah_grid": 5, "fwe": 50}
    costs = [
        cost(cell, trials.get(cell.task, 10), arguments, WIDTH) for cell in cells_of(arguments)
    ]
    jobs = [Share(index, count).of_costs(costs) for index in range(count)]
    loads = [sum(costs[number] for number in job) for job in jobs]
    assert max(loads) < 1.1 * max(sum(costs) / count, max(costs))

"""One run of each page in a process, shared by the tests of its blocks."""

from collections.abc import Callable, Iterator
from functools import cache

import datasets
import huggingface_hub
import pytest

import lrk
from tests.docs.commands import Commands
from tests.docs.page_run import PageRun
from tests.docs.shell import Shell
from tests.docs.stand_ins import StandIns

# What schedulers set.
VARIABLES = {
    "SLURM_CPUS_PER_TASK": "1",
    "SLURM_ARRAY_TASK_ID": "0",
    "SLURM_ARRAY_TASK_COUNT": "1",
    "JOB_COMPLETION_INDEX": "0",
}


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hub, and with data sets' cache apart."""
    cached = tmp_path_factory.getbasetemp() / "datasets-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cached)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def page_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], PageRun]]:
    folder = tmp_path_factory.mktemp("docs")
    stand_ins = StandIns(folder / "stand_ins")
    commands = Commands(stand_ins)
    shell = Shell(folder / "shell", commands.programs(), commands.answer, VARIABLES)

    @cache
    def of(page: str) -> PageRun:
        return PageRun(page, folder / "pages" / page, stand_ins, commands, shell)

    datasets.disable_progress_bars()
    yield of
    datasets.enable_progress_bars()
    lrk.revert_lrk()

"""Where kernels run in the tests.

Triton kernels run on the GPU if there is one, else on CPU tensors in Triton's interpreter. Whether
it interprets is fixed when a kernel is decorated, so it is chosen here, before any import of lrk.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Tensors are small here, and the processes of a parallel run share the cores.
torch.set_num_threads(1)


@pytest.fixture
def device() -> torch.device:
    """Where kernels are launched."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep what `datasets` prepares out of the user's cache, and its progress bars silent."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is to be read in the pictures that are saved, ticks included."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    texts: list[str] = []
    save = Figure.savefig

    def noted(figure: Figure, *arguments, **options) -> None:
        save(figure, *arguments, **options)
        found = (text for text in figure.findobj(Text) if text.get_visible())
        texts.extend(text.get_text() for text in found if text.get_text())

    monkeypatch.setattr(Figure, "savefig", noted)
    return texts


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill `torch.empty` with NaN (integers: the largest value), so that unwritten outputs show."""
    from lrk.testing import poisoned_memory

    with poisoned_memory():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)

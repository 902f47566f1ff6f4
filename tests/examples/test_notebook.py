"""examples/extend.ipynb runs from its first cell to its last, and is kept with its outputs."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FILE = Path(__file__).parents[2] / "examples" / "extend.ipynb"
MOST_BYTES = 300_000

# Two layers of the model, so that it says nonsense; what is independent of that is asserted.
SMALL = """
STEPS, TOKENS, TARGET, LAYERS, PASSAGE, SAMPLES = 2, 64, 32_768, 2, 32, 8
FOLDER = {folder!r}
"""
ASSERTIONS = """
import sys

assert sys.executable == {executable!r}
tokens[0, 0] += 1  # before the gap: afterwards only lrk sees another text
behind = slice(PASSAGE, None)
assert (token_losses(model, tokens, positions) - stock)[behind].abs().max() == 0
with lrk.patched(model):
    assert (token_losses(model, tokens, positions) - ours)[behind].abs().max() > 0
assert list(found) == ["untouched", "RoPE rescaled", "trained"]
assert all(losses.isfinite().all() for losses in found.values())
assert not torch.equal(found["trained"], found["RoPE rescaled"])
assert extended.config.max_position_embeddings == TARGET
"""


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(FILE, as_version=4)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a kernel of this very environment: `python3` may be another one's."""
    folder = tmp_path / "jupyter" / "kernels" / "of-the-tests"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    specification = {"argv": command, "display_name": "tests", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(specification))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder.name


def test_it_runs(notebook, kernel, tmp_path):
    (settings,) = (x for x in notebook.cells if "parameters" in x.metadata.get("tags", ()))
    settings.source = SMALL.format(folder=str(tmp_path / "outputs"))
    checks = nbformat.v4.new_code_cell(ASSERTIONS.format(executable=sys.executable))
    notebook.cells.append(checks)
    where = {"metadata": {"path": str(FILE.parent)}}
    NotebookClient(notebook, kernel_name=kernel, timeout=300, resources=where).execute()
    assert sum(x.startswith(b"\x89PNG") for x in pictures(tmp_path / "outputs")) == 2


def pictures(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("trap.png", "after.png")]


def test_it_is_kept_as_it_ran(notebook):
    """Every cell in order, with pictures, without errors, paths of a machine or times of cells."""
    nbformat.validate(notebook)
    assert FILE.stat().st_size < MOST_BYTES
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
    outputs = [output for cell in ran for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "execute_result"}
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 2
    assert "stderr" not in {output.get("name") for output in outputs}
    assert not any("execution" in cell.metadata for cell in ran)
    assert not any(path in FILE.read_text() for path in ("/home/", "/root/", "/tmp/", "/usr/"))


def test_a_sentence_stands_before_what_is_computed(notebook):
    """Two cells of code follow each other only where the second shows what the first has made."""
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown"
    assert "code code code" not in " ".join(kinds)

from pathlib import Path

import pytest
from transformers import LlamaConfig

from lrk.analysis import extended
from lrk.analysis.arguments import AnalysisArguments


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_model_that_is_there_is_not_trained_again(name, tmp_path, monkeypatch):
    trained: list[str] = []
    monkeypatch.setattr(extended, "train", lambda made: trained.append(made.output_dir))
    arguments = AnalysisArguments(
        model="m",
        data=["d"],
        output_dir=str(tmp_path),
        extend_data=["e"],
        extend_steps=1,
        extend_length=32,
        parts_of_speech=False,
    )
    folder = Path(tmp_path, extended.FOLDER)
    folder.mkdir()
    (folder / "model-00001-of-00002.safetensors").touch()
    for _ in range(2):
        extended.train_extended(arguments, LlamaConfig())
        (folder / name).touch()
    assert trained == [str(folder)], "a shard without an index is half a model"

"""Merged tensors equal the rules' formulas in float64, and stock transformers loads the result."""

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrk.merge import Linear, Slerp, TaskArithmetic, main, merge

INDEX = "model.safetensors.index.json"


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def linear(x: list[Tensor]) -> Tensor:
    return 0.5 * x[0] + 0.5 * x[1]


def slerp(x: list[Tensor], t: float = 0.3) -> Tensor:
    first, second = x
    cosine = (first * second).sum() / first.norm() / second.norm()
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)


def task_arithmetic(x: list[Tensor]) -> Tensor:
    return x[0] + 0.7 * (x[1] - x[0]) - 0.2 * (x[2] - x[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("rule", "formula", "count"),
    [
        (Linear(), linear, 2),
        (Slerp(0.3), slerp, 2),
        (TaskArithmetic((0.7, -0.2)), task_arithmetic, 3),
    ],
    ids=["linear", "slerp", "task arithmetic"],
)
def test_tensors_equal_the_formula(save_model, tmp_path, rule, formula, count, dtype):
    models = [save_model(f"model {i}", i, dtype, shards=True) for i in range(count)]
    merged = tensors_of(merge(models, tmp_path / "merged", rule))
    versions = [tensors_of(model) for model in models]
    assert merged.keys() == versions[0].keys()
    for name, ours in merged.items():
        exact = formula([version[name].double() for version in versions])
        assert ours.dtype == dtype
        # One rounding, and the norm weights are parallel in all models.
        if name.endswith("norm.weight"):
            exact = versions[0][name].double()
        largest = float(exact.abs().max())
        assert float((ours.double() - exact).abs().max()) <= torch.finfo(dtype).eps * largest / 2


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", [False, True])
def test_stock_transformers_loads_the_merged_model(save_model, tmp_path, tied, shards):
    models = [
        save_model(name, seed, shards=shards, tie_word_embeddings=tied)
        for name, seed in (("a", 0), ("b", 1))
    ]
    folder = merge(models, tmp_path / "merged", Linear())
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert ("lm_head.weight" in tensors_of(folder)) == (not tied)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    first, second = (AutoModelForCausalLM.from_pretrained(model) for model in models)
    with torch.no_grad():
        for ours, one, two in zip(
            loaded.parameters(), first.parameters(), second.parameters(), strict=True
        ):
            one.copy_((one + two) / 2)
            torch.testing.assert_close(ours, one)
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(loaded(tokens).logits, first(tokens).logits)
    assert AutoTokenizer.from_pretrained(folder)("w3 w7")["input_ids"] == [3, 7]
    names = {file.name for file in models[0].iterdir()}
    assert {file.name for file in folder.iterdir()} == names
    assert (INDEX in names) == shards
    if shards:
        ours, theirs = (json.loads((each / INDEX).read_text()) for each in (folder, models[0]))
        assert ours["weight_map"] == theirs["weight_map"]
        assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]


def test_the_ends_of_the_arc_are_the_models(save_model, tmp_path):
    models = [save_model("a", 0), save_model("b", 1)]
    for t, model in zip((0.0, 1.0), models, strict=True):
        merged = tensors_of(merge(models, tmp_path / str(t), Slerp(t)))
        for name, tensor in tensors_of(model).items():
            assert torch.equal(merged[name], tensor)


def test_where_there_is_no_arc_slerp_is_a_straight_line(save_model, tmp_path):
    models = [save_model("a", 0), save_model("b", 1)]
    first, second = (tensors_of(model) for model in models)
    zero, opposite = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    first[zero] = torch.zeros_like(first[zero])
    second[opposite] = -first[opposite]
    for model, tensors in zip(models, (first, second), strict=True):
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    merged = tensors_of(merge(models, tmp_path / "merged", Slerp(0.25)))
    torch.testing.assert_close(merged[zero], 0.25 * second[zero])
    torch.testing.assert_close(merged[opposite], 0.5 * first[opposite])


def test_an_extended_model_keeps_its_window_and_dtypes(save_model, tmp_path):
    """LongRecipe's third stage: half the original, half the extended model."""
    original = save_model("original", 0, torch.bfloat16, shards=True)
    extended = save_model(
        "extended",
        1,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 4e6},
    )
    models = [original, extended]
    with pytest.raises(ValueError, match="say with config_from which model's to keep"):
        merge(models, tmp_path / "merged", Linear())
    folder = merge(models, tmp_path / "merged", Linear((0.5, 0.5)), config_from=extended)
    config = json.loads((folder / "config.json").read_text())
    # The base also where transformers 4 looks for it.
    assert config == json.loads((extended / "config.json").read_text()) | {"rope_theta": 4e6}
    merged, one, two = map(tensors_of, (folder, original, extended))
    for name, ours in merged.items():
        assert torch.equal(ours, ((one[name].double() + two[name].double()) / 2).float())
    assert [file.name for file in folder.glob("*.safetensors")] == ["model.safetensors"]


def peak_growth(action: Callable[[], object]) -> int:
    """Bytes by which resident pages, those of mapped files included, peak above what is there."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    action()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{key}:\s+(\d+) kB", status)[1])


def in_memory(models: list[Path], output: Path) -> None:
    """What `merge` does not do."""
    first, second = (tensors_of(model) for model in models)
    save_file({name: (first[name] + second[name]) / 2 for name in first}, output)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident pages from /proc")
def test_peak_memory_is_below_two_tensors(save_model, tmp_path):
    size = 32 * 2**20
    models = [save_model(name, seed) for seed, name in enumerate("ab")]
    for seed, model in enumerate(models):
        (model / "model.safetensors").unlink()
        generator = torch.Generator().manual_seed(seed)
        tensor = torch.randn(size // 4096, 1024, generator=generator)
        files = {f"tensor {i}": f"model-{i}.safetensors" for i in range(3)}
        for name, file in files.items():
            save_file({name: tensor}, model / file)
        (model / INDEX).write_text(json.dumps({"weight_map": files}))
    assert peak_growth(lambda: in_memory(models, tmp_path / "all")) > 2 * size
    for i, rule in enumerate((Linear(), Slerp(), TaskArithmetic())):
        growth = peak_growth(lambda i=i, rule=rule: merge(models, tmp_path / str(i), rule))
        assert growth < 2 * size, f"{growth / 2**20:.0f} MiB"


def test_command(save_model, tmp_path, capsys):
    a, b = (str(save_model(name, seed)) for seed, name in enumerate("ab"))
    base = str(save_model("base", 2))
    for number, words in enumerate(
        (
            ["linear", a, b, "--weights", "0.5", "0.5", "--config-from", b],
            ["slerp", a, b, "--t", "0.5"],
            ["task_arithmetic", a, b, "--base", base, "--weights", "0.5", "0.5"],
        )
    ):
        output = str(tmp_path / f"merged {number}")
        assert main([*words, "--output_dir", output]) == 0
        assert capsys.readouterr().out.strip() == output
        AutoModelForCausalLM.from_pretrained(output)
    half = tensors_of(tmp_path / "merged 0")
    for name, tensor in tensors_of(tmp_path / "merged 2").items():
        # base + (a - base) / 2 + (b - base) / 2
        torch.testing.assert_close(tensor, half[name])

"""`--gpu` rehearsed on a CPU, whose memory stands in for a GPU's: all lines run, but no kernel."""

import gc
import json
import weakref
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from lrk.memory.host_optimizer import HostOptimizer
from lrk.plan import check, step

WORKSPACES, PEAK = 32 * check.MIB, 1000 * check.MIB
TECHNIQUES = ("all of these", "bf16 autocast", "LoRA", "QLoRA", "liger-style")
FACTORIES = {torch.arange, torch.empty, torch.full, torch.ones, torch.tensor, torch.zeros}


class Gpu(TorchFunctionMode):
    """As a default device it marks the tensors that would lie on it; and it counts as told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.models: list[weakref.ref] = []
        self.host_buffers: list[torch.Tensor] = []

    def __torch_function__(self, function, types, args=(), kwargs=None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in FACTORIES and (kwargs or {}).get("device") is None:
            result.is_on_gpu = True
        return result

    def is_available(self) -> bool:
        return True

    def is_current_stream_capturing(self) -> bool:  # which optimizers ask
        return False

    def empty_cache(self) -> None:
        self.calls.append("empty")
        assert [model for model in self.models if model() is not None] == []

    def memory_allocated(self) -> int:
        self.calls.append("before")
        return WORKSPACES

    def reset_peak_memory_stats(self) -> None:
        self.calls.append("reset")

    def max_memory_allocated(self) -> int:
        self.calls.append("after")
        return WORKSPACES + PEAK


@pytest.fixture
def gpu(monkeypatch, config) -> Gpu:
    gpu = Gpu()
    for name in (
        "is_available",
        "is_current_stream_capturing",
        "empty_cache",
        "memory_allocated",
        "reset_peak_memory_stats",
        "max_memory_allocated",
    ):
        monkeypatch.setattr(torch.cuda, name, getattr(gpu, name))

    class Watched(HostOptimizer):
        def __init__(self, optimizer):
            super().__init__(optimizer)
            gpu.host_buffers += [buffer for pair in self.buffers.values() for buffer in pair]

    def make_workspaces():
        gpu.calls.append("product")
        stock_workspaces()

    def run_step(model, settings, teacher=None):
        gpu.calls.append("step")
        gpu.models.append(weakref.ref(model))
        vars(model)["cycle"] = model  # which alone does not free it
        step.run_step(model, settings, teacher=teacher)

    stock_workspaces = check.make_library_workspaces
    monkeypatch.setattr(check, "make_library_workspaces", make_workspaces)
    monkeypatch.setattr(check, "run_step", run_step)
    monkeypatch.setattr(check, "DEVICE_OF_GPUS", gpu)
    monkeypatch.setattr(check, "small_models", lambda layers: dict.fromkeys(check.MODELS, config))
    monkeypatch.setattr(step, "HostOptimizer", Watched)
    return gpu


def run(tmp_path, *techniques: str) -> list[dict[str, Any]]:
    file = tmp_path / "rows.json"
    arguments = ["--gpu", "h100", "--lengths", "64", "--models", "llama-3 narrow"]
    arguments += ["--techniques", *techniques, "--tolerance", "1", "--json", str(file)]
    assert check.main(arguments) == 0
    return json.loads(file.read_text())


def test_a_step_is_measured_alone(gpu, tmp_path):
    """Without what libraries keep, and without the model before it."""
    rows = run(tmp_path, "lrk", "stock")
    assert [row["measured_mib"] for row in rows] == [PEAK / check.MIB] * 2
    assert gpu.calls == ["empty", "product", "before", "reset", "step", "after"] * 2
    gc.collect()
    assert [model() for model in gpu.models] == [None, None]


def test_techniques_take_their_steps(gpu, tmp_path):
    rows = run(tmp_path, *TECHNIQUES)
    assert [row["technique"] for row in rows] == list(filter(check._can_run, TECHNIQUES))
    assert {(row["settings"]["gpu"], row["settings"]["dtype"]) for row in rows} == {
        ("h100", "bfloat16")
    }


def test_what_is_for_the_host_is_on_the_host(gpu, tmp_path):
    run(tmp_path, "optimizer on the host")
    assert len(gpu.host_buffers) == 2 * 2  # of the plan, and of the step
    assert [buffer for buffer in gpu.host_buffers if hasattr(buffer, "is_on_gpu")] == []


def test_what_is_for_the_gpu_is_on_the_default_device(config):
    settings = check.settings_of("LoRA", 64, "h100")
    with torch.device("meta"):
        model = check.real_model(config, settings)
        batch = step.make_batch(settings)
    tensors = [*model.parameters(), *model.buffers(), *batch.values()]
    assert [tensor for tensor in tensors if not tensor.is_meta] == []


def test_no_gpu_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        check.main(["--gpu", "h100"])
    sentence = "--gpu is h100, but PyTorch finds no GPU on this machine"
    assert sentence in capsys.readouterr().err

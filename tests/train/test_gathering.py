"""The final folder of each engine: stock transformers loads it, and it is what was trained."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from lrk.train import LrkTrainingArguments, session, train
from studies.ranks import fsdp_on_cpu, run_ranks

LORA = {"lora_rank": 4, "lora_modules_to_save": ["embed_tokens", "norm"]}
SHARDED = {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}
ENGINES: dict[str, dict[str, Any]] = {
    "DDP": {},
    "FSDP2": {"fsdp": True, "fsdp_config": {"version": 2}},
    "FSDP2, sharded state dict": {"fsdp": True, "fsdp_config": SHARDED},
    "ZeRO-3": {"deepspeed": 3},
    "ZeRO-2": {"deepspeed": 2},
}
CASES = [
    ("DDP", LORA),
    ("FSDP2, sharded state dict", {}),
    ("FSDP2", LORA),
    ("FSDP2", {"dtype": "bfloat16", "bf16": True}),
    ("ZeRO-3", {}),
    ("ZeRO-3", LORA),
    ("ZeRO-3", {"bf16": True}),
    ("ZeRO-2", {"bf16": True}),
]


@pytest.fixture(scope="session")
def tied(model_folder, tmp_path_factory) -> str:
    """Whose embeddings are its head, too."""
    folder = tmp_path_factory.mktemp("tied")
    config = AutoConfig.from_pretrained(model_folder)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return str(folder)


def trained(options: dict[str, Any], cache: Path) -> dict[str, Tensor]:
    """What a rank has trained, whole, noted before anything is saved."""
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()
    if "deepspeed" in options:
        from deepspeed import comm

        comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    found: dict[str, Tensor] = {}
    save = session.save

    def noted(trainer: Any, folder: Path) -> None:
        model = trainer.accelerator.unwrap_model(trainer.model)
        found.update({name: whole(each) for name, each in model.named_parameters()})
        save(trainer, folder)

    session.save = noted
    with fsdp_on_cpu():
        trainer = train(LrkTrainingArguments(**options))
    if trainer.args.process_index == 0:
        assert not any(isinstance(each, DTensor) for each in trainer.model.parameters())
    return found


def whole(parameter: Tensor) -> Tensor:
    if isinstance(parameter, DTensor):
        return parameter.detach().full_tensor()
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter)
    return parameter.detach().clone()


def options_of(options: dict[str, Any], engine: str, folder: Path) -> dict[str, Any]:
    found = dict(ENGINES[engine])
    if (stage := found.get("deepspeed")) is None:
        return options | found
    path = folder / "zero.json"
    # Nothing is said of gathering at a save, which ZeRO-3 leaves out then.
    found["deepspeed"] = str(path)
    path.write_text(
        json.dumps(
            {
                **dict.fromkeys(["train_micro_batch_size_per_gpu", "train_batch_size"], "auto"),
                **dict.fromkeys(["gradient_accumulation_steps", "gradient_clipping"], "auto"),
                "zero_allow_untested_optimizer": True,
                "zero_optimization": {"stage": stage},
                "bf16": {"enabled": "auto"},
            }
        )
    )
    return options | found


@pytest.mark.parametrize(("engine", "changes"), CASES)
def test_it_is_what_was_trained_and_what_one_process_saves(
    options, tied, tmp_path, engine, changes
):
    if engine.startswith("ZeRO"):
        pytest.importorskip("deepspeed")
    given = {**options, **changes, "model_name_or_path": tied}
    alone = {**given, "output_dir": str(tmp_path / "alone"), "per_device_train_batch_size": 2}
    train(LrkTrainingArguments(**alone))
    given["per_device_train_batch_size"] = 1
    parameters, _ = run_ranks(trained, 2, options_of(given, engine, tmp_path), tmp_path / "cache")

    folders = Path(given["output_dir"]), tmp_path / "alone"
    written = [json.loads((each / "config.json").read_text()) for each in folders]
    assert written[0] == written[1]
    names = [load_file(each / "model.safetensors").keys() for each in folders]
    assert names[0] == names[1]
    saved, expected = (
        AutoModelForCausalLM.from_pretrained(each, dtype="auto").state_dict() for each in folders
    )
    for name, tensor in expected.items():
        assert saved[name].dtype == tensor.dtype
        # In bfloat16 one process rounds otherwise: its weights at every step, or its products.
        if not given["bf16"]:
            torch.testing.assert_close(saved[name], tensor, rtol=0, atol=1e-5)
    before = AutoModelForCausalLM.from_pretrained(tied).state_dict()
    layer = "model.layers.0.mlp.up_proj.weight"
    assert (saved[layer].float() - before[layer]).abs().max() > 5e-3
    of = merged(before, parameters) if "lora_rank" in changes else parameters
    for name, tensor in of.items():
        assert saved[name].equal(tensor.to(saved[name].dtype)), name


def merged(base: dict[str, Tensor], parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """W + s B A, and what was trained whole."""
    found = {}
    for path, tensor in parameters.items():
        name = path.removeprefix("base_model.model.")
        if ".modules_to_save.default" in name:
            found[name.replace(".modules_to_save.default", "")] = tensor
        elif ".lora_B.default" in name:
            factor = parameters[path.replace(".lora_B.", ".lora_A.")]
            name = name.replace(".lora_B.default", "")
            found[name] = base[name] + 16 / 4 * (tensor @ factor)
    return found


def test_the_adapter_alone_is_whole_too(options, tied, tmp_path):
    """Its loss on the base is that of the merged model."""
    given = {**options, "model_name_or_path": tied, "lora_rank": 4}
    run_ranks(
        trained, 2, options_of(given, "FSDP2, sharded state dict", tmp_path), tmp_path / "cache"
    )
    folder = Path(given["output_dir"])
    base = LlamaForCausalLM.from_pretrained(tied, config=AutoConfig.from_pretrained(folder))
    adapted = PeftModel.from_pretrained(base, folder / "adapter")
    ids = torch.arange(12)[None]
    merged = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(adapted(ids).logits, merged(ids).logits)

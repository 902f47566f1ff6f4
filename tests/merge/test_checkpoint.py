"""What of a folder's tensors takes part in a merge."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from lrk.merge import Linear, merge
from lrk.merge.checkpoint import read_checkpoint

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def folders(tmp_path):
    """A model with tied embeddings as old files have it, and as transformers saves it again."""
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(tmp_path / "new")
    old = shutil.copytree(tmp_path / "new", tmp_path / "old")
    weights = load_file(old / "model.safetensors")
    weights[HEAD] = weights[EMBEDDINGS].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, old / "model.safetensors", {"format": "pt"})
    config = json.loads((old / "config.json").read_text())
    config |= {"architectures": ["LLaMAForCausalLM"], "auto_map": {"AutoConfig": "c.Config"}}
    (old / "config.json").write_text(json.dumps(config))
    return old, tmp_path / "new"


@pytest.mark.parametrize("kept", [0, 1])
def test_what_loading_makes_of_other_things_is_left_out(folders, tmp_path, kept):
    merged = merge(folders, tmp_path / "merged", Linear(), config_from=folders[kept])
    expected = load_file(folders[1] / "model.safetensors")
    found = load_file(merged / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], each) for name, each in expected.items())
    loaded, info = LlamaForCausalLM.from_pretrained(merged, output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_head_that_differs_from_the_embeddings_is_kept(folders):
    """transformers does not tie it, whatever the config says."""
    old, _ = folders
    assert HEAD not in read_checkpoint(old).tensors
    weights = load_file(old / "model.safetensors")
    weights[HEAD][3, 2] += 1
    save_file(weights, old / "model.safetensors", {"format": "pt"})
    assert HEAD in read_checkpoint(old).tensors

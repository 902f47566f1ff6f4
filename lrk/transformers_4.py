"""Saved models that transformers 4 and what is built on it read as transformers 5 does.

transformers 5 saves RoPE's parameters under `rope_parameters` alone. Release 4 does not know that
name and takes its own default for the base, without a word, so that an extended window is lost. It
has `rope_theta` and `rope_scaling` (transformers 4.57, `modeling_rope_utils`), which 5 reads too,
and to which it gives the same meaning.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrk.atomic import write_text

Content = dict[str, Any]


def make_readable(folder: Path) -> None:
    """Add the names of transformers 4 to the config and tokenizer that a folder holds.

    Parameters that differ between layer types are left: there release 4 has names for each model.
    """
    _change(folder / "config.json", _with_rope)
    _change(folder / "tokenizer_config.json", _with_known_class)


def _with_rope(config: Content) -> Content:
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict) or "rope_theta" not in parameters:
        return config
    beside = {
        name: parameters[name]
        for name in ("rope_theta", "partial_rotary_factor")
        if name in parameters
    }
    scaling = {name: value for name, value in parameters.items() if name not in beside}
    if scaling.get("rope_type", "default") != "default":
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

"""`AutoLrkModelForCausalLM`: load and patch in one step."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, find_adapter_config_file

from lrk.hf.architectures import architecture_to_patch, check_attention_config, text_config
from lrk.hf.backends import check_request, installed_attention
from lrk.hf.patch import check_release, patch

# What decides where a config is read from, of the arguments of `from_pretrained`.
_HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)


class AutoLrkModelForCausalLM:
    """`transformers.AutoModelForCausalLM`, whose models come patched. Not instantiated itself."""

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        rope: bool = True,
        attention: bool | str = True,
        cross_entropy: bool = True,
        **kwargs: Any,
    ) -> Any:
        """The patched model of a folder or a hub name; also of a LoRA adapter's.

        Args:
            rope, attention, cross_entropy: as in `lrk.patch`.
            args, kwargs: as in `AutoModelForCausalLM.from_pretrained`.

        Returns:
            The model; with `output_loading_info=True` a pair of the model and the info.

        Raises:
            ValueError: as `lrk.patch` does for the model's type, the attention, its dropout and the
                release of transformers, before any weights are read; and for an
                `attn_implementation` that `attention` would replace.
        """
        name = str(pretrained_model_name_or_path)
        _check(_config_of(name, kwargs), f"pretrained_model_name_or_path {name!r} is", attention)
        check_request(kwargs.get("attn_implementation"), attention)
        loaded = AutoModelForCausalLM.from_pretrained(name, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        patch(model, rope=rope, attention=attention, cross_entropy=cross_entropy)
        return loaded

    @staticmethod
    def from_config(
        config: PretrainedConfig,
        rope: bool = True,
        attention: bool | str = True,
        cross_entropy: bool = True,
        **kwargs: Any,
    ) -> PreTrainedModel:
        """A patched model with random weights.

        Args:
            rope, attention, cross_entropy: as in `lrk.patch`.
            kwargs: as in `AutoModelForCausalLM.from_config`.

        Raises:
            ValueError: as `lrk.patch` does, and as `from_pretrained`.
        """
        _check(config, f"config is a {type(config).__name__}", attention)
        check_request(kwargs.get("attn_implementation"), attention)
        model = AutoModelForCausalLM.from_config(config, **kwargs)
        return patch(model, rope=rope, attention=attention, cross_entropy=cross_entropy)


def _check(config: PretrainedConfig, subject: str, attention: bool | str) -> None:
    name = installed_attention(attention)
    architecture_to_patch(config, subject)
    config = text_config(config)
    check_release(config.model_type)
    if name is not None:
        check_attention_config(config, name)


def _config_of(name: str, kwargs: dict[str, Any]) -> PretrainedConfig:
    """The config that `AutoModelForCausalLM.from_pretrained(name, **kwargs)` will use."""
    given = kwargs.get("config")
    if isinstance(given, PretrainedConfig):
        return given
    hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
    adapter = find_adapter_config_file(name, **hub)
    if adapter is not None and not (Path(name) / CONFIG_NAME).exists():
        name = json.loads(Path(adapter).read_text(encoding="utf-8"))["base_model_name_or_path"]
    others = ("gguf_file", "trust_remote_code", "code_revision", "attention_dropout")
    return AutoConfig.from_pretrained(
        name, **hub, **{key: kwargs[key] for key in others if key in kwargs}
    )

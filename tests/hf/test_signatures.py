"""A release of transformers that names its arguments otherwise is refused beforehand."""

from inspect import Parameter, Signature

import pytest
import transformers
from transformers import AutoModelForCausalLM

import lrk
from lrk.hf import SUPPORTED
from lrk.hf.architectures import architecture_of_type
from lrk.hf.base_model import LrkBaseModel
from lrk.hf.cache_name import CACHE_NAME
from lrk.hf.causal_lm import LrkForCausalLM
from lrk.hf.patch import check_release
from lrk.hf.rope import LrkRotaryEmbedding
from lrk.hf.signatures import check_signature


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_the_installed_release_is_known(model_type):
    check_release(model_type)


NAMES = ("input_ids", "attention_mask", "position_ids", CACHE_NAME, "inputs_embeds", "use_cache")


def with_arguments(*names):
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]

    class Renamed:
        def forward(self, *args, **kwargs):
            """Of the next release."""

    Renamed.forward.__signature__ = Signature(parameters)
    return Renamed


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        # Handed on among other arguments, `store` would be used by nobody.
        ((*NAMES[:3], "store", *NAMES[4:]), "takes store, which lrk does not know"),
        # A mask that is handed to it would be ignored.
        ((NAMES[0], *NAMES[2:]), "does not take attention_mask"),
        # Arguments by position would change places.
        ((*NAMES[1::-1], *NAMES[2:]), "in the order self, attention_mask, input_ids"),
    ],
)
def test_other_arguments_are_one_sentence(names, difference):
    with pytest.raises(ValueError, match=difference) as refusal:
        check_signature(with_arguments(*names), LrkBaseModel)
    sentence = str(refusal.value)
    assert sentence.startswith(f"Renamed.forward of transformers {transformers.__version__} ")
    assert sentence.count(": ") == 1


def test_what_only_some_models_take():
    """Experts' logits by place too, and the kind of a layer."""
    causal_lm = [*NAMES[:-1], "labels", "use_cache", "logits_to_keep"]
    check_signature(with_arguments(*causal_lm), LrkForCausalLM)
    causal_lm.insert(-1, "output_router_logits")
    check_signature(with_arguments(*causal_lm), LrkForCausalLM)
    for names in (("x", "position_ids"), ("x", "position_ids", "layer_type")):
        check_signature(with_arguments(*names), LrkRotaryEmbedding, may_lack=["layer_type"])


@pytest.fixture
def a_renamed_cache(llama, monkeypatch):
    """The next release, say."""

    def rename():
        kind = architecture_of_type("llama").base_model
        stock = kind.forward

        def forward(
            self, input_ids, attention_mask, position_ids, kv, inputs_embeds, use_cache, **kwargs
        ):
            return stock(self, input_ids, attention_mask, position_ids, kv, inputs_embeds, **kwargs)

        monkeypatch.setattr(kind, "forward", forward)

    return rename


def test_nothing_is_patched(llama, a_renamed_cache):
    classes = [type(module) for module in llama.modules()]
    a_renamed_cache()
    with pytest.raises(ValueError, match=r"LlamaModel\.forward of transformers .* takes kv"):
        lrk.patch(llama)
    assert [type(module) for module in llama.modules()] == classes
    assert llama.config._attn_implementation != "lrk"


def test_nothing_is_loaded(llama, a_renamed_cache, tmp_path, monkeypatch):
    llama.save_pretrained(tmp_path)
    a_renamed_cache()
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(ValueError, match="takes kv"):
        lrk.AutoLrkModelForCausalLM.from_pretrained(tmp_path)

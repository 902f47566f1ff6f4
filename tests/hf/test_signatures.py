"""A release of transformers that names its arguments otherwise is refused beforehand."""

import copy
from inspect import Parameter, Signature

import pytest
import transformers
from transformers import AutoModelForCausalLM

import lrk
from lrk.decode import pcd, self_extend
from lrk.hf import SUPPORTED
from lrk.hf.architectures import architecture_of_type
from lrk.hf.cache_name import CACHE_NAME
from lrk.hf.patch import check_release
from lrk.hf.rope import LrkAttention
from lrk.hf.signatures import check_signatures


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_the_installed_release_is_known(model_type):
    check_release(model_type)


NAMES = ("hidden_states", "position_embeddings", "attention_mask", CACHE_NAME)


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        # Handed on among other arguments, `store` would be used by nobody.
        ((*NAMES[:3], "store"), "takes store, which lrk does not know"),
        # A mask that is handed to it would be ignored.
        ((*NAMES[:2], CACHE_NAME), "does not take attention_mask"),
        # Arguments by position would change places.
        ((*NAMES[1::-1], *NAMES[2:]), "in the order self, position_embeddings, hidden_states"),
    ],
)
def test_other_arguments_are_one_sentence(names, difference):
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]

    class Renamed:
        def forward(self, *args, **kwargs):
            """Of the next release."""

    Renamed.forward.__signature__ = Signature(parameters)
    with pytest.raises(ValueError, match=difference) as refusal:
        check_signatures({Renamed: LrkAttention})
    sentence = str(refusal.value)
    assert sentence.startswith(f"Renamed.forward of transformers {transformers.__version__} ")
    assert sentence.count(": ") == 1


@pytest.fixture
def a_renamed_cache(llama, monkeypatch):
    """The next release, say."""

    def rename():
        kind = architecture_of_type("llama").attention
        stock = kind.forward

        def forward(
            self, hidden_states, position_embeddings, attention_mask=None, kv=None, **kwargs
        ):
            return stock(self, hidden_states, position_embeddings, attention_mask, kv, **kwargs)

        monkeypatch.setattr(kind, "forward", forward)

    return rename


def test_nothing_is_patched(llama, a_renamed_cache):
    classes = [type(module) for module in llama.modules()]
    a_renamed_cache()
    with pytest.raises(ValueError, match=r"LlamaAttention\.forward of transformers .* takes kv"):
        lrk.patch(llama)
    assert [type(module) for module in llama.modules()] == classes
    assert llama.config._attn_implementation != "lrk"
    lrk.patch(llama, rope=False)  # replaces no attention


def test_nothing_is_loaded(llama, a_renamed_cache, tmp_path, monkeypatch):
    llama.save_pretrained(tmp_path)
    a_renamed_cache()
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(ValueError, match="takes kv"):
        lrk.AutoLrkModelForCausalLM.from_pretrained(tmp_path)


def test_decoding_methods_are_refused(llama, a_renamed_cache):
    model = lrk.patch(copy.deepcopy(llama))
    a_renamed_cache()
    with pytest.raises(ValueError, match="takes kv"):
        self_extend(model, window=8, group=2).__enter__()
    with pcd(model):  # replaces no attention
        pass

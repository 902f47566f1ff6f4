"""The text model inside a model of several modalities."""

import copy
import importlib

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Mistral3Config,
)
from transformers import Mistral3ForConditionalGeneration as Mistral3

import lrk
from lrk.hf.architectures import check_supported
from lrk.hf.attention import BACKEND
from lrk.hf.canary import tiny_config
from lrk.hf.rope import LrkAttention

patch_file = importlib.import_module("lrk.hf.patch")  # a function has its name, too

TEXT = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
SKIPPED = torch.tensor([[0, 1, 2, 3, 40, 41, 42, 43]])
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def gemma3():
    config = Gemma3Config(
        text_config=tiny_config("gemma3_text").to_dict(),
        vision_config=VISION | {"model_type": "siglip_vision_model"},
        mm_tokens_per_image=1,
        image_token_index=60,
    )
    return Gemma3ForConditionalGeneration(config)


def mistral3():
    config = Mistral3Config(
        text_config=tiny_config("mistral", sliding_window=None).to_dict(),
        vision_config=VISION | {"model_type": "pixtral", "head_dim": 8},
        image_token_index=60,
    )
    return Mistral3(config)


@pytest.fixture(params=[gemma3, mistral3], ids=["gemma3", "mistral3"])
def wrapper(request):
    torch.manual_seed(0)
    return request.param().eval()


@torch.no_grad()
def test_text_as_stock_and_across_skips(wrapper):
    model = lrk.patch(copy.deepcopy(wrapper))
    attentions = [each for each in model.modules() if isinstance(each, LrkAttention)]
    assert len(attentions) == 2
    text = model.config.text_config
    assert text._attn_implementation == BACKEND
    assert model.config.vision_config._attn_implementation == "sdpa"
    expected = wrapper(TEXT, use_cache=False).logits
    torch.testing.assert_close(model(TEXT, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(TEXT, **options), wrapper.generate(TEXT, **options))
    prompts = {"attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8]), **options}
    pair = torch.cat([TEXT, TEXT + 1])
    assert torch.equal(model.generate(pair, **prompts), wrapper.generate(pair, **prompts))
    edited = TEXT.clone()
    edited[0, 1] = 30
    one, two = (model(ids, position_ids=SKIPPED, use_cache=False).logits for ids in (TEXT, edited))
    assert ((one - two).abs().amax(-1)[0, 1:] > 1e-5).all()
    lrk.unpatch(model)
    assert torch.equal(model(TEXT, use_cache=False).logits, expected)


def test_its_own_loss_is_said(wrapper, caplog):
    """It is not replaced, so its logits are formed."""
    said = patch_file._logger.warning_once
    said.cache_clear()
    with caplog.at_level("WARNING", logger="transformers"):
        lrk.patch(wrapper)
        lrk.patch(wrapper, cross_entropy=False)
    assert caplog.text.count("whose loss stays its own, with logits") == 1


def test_a_run_takes_the_text_model_alone(wrapper):
    with pytest.raises(ValueError, match="of several modalities: save its text model by itself"):
        check_supported(wrapper.config, "model_name_or_path 'x' is")
    check_supported(wrapper.config.text_config, "model_name_or_path 'x' is")


def test_training_and_the_loss_as_stock(wrapper):
    model = lrk.patch(copy.deepcopy(wrapper), cross_entropy=False)
    losses = [each.train()(TEXT, labels=TEXT, use_cache=False).loss for each in (model, wrapper)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    ours, theirs = (each.get_input_embeddings().weight.grad for each in (model, wrapper))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_the_auto_class(wrapper, tmp_path):
    wrapper.save_pretrained(tmp_path)
    try:
        stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    except ValueError:  # a release without such an auto class for it
        with pytest.raises(ValueError, match="Unrecognized configuration class"):
            lrk.AutoLrkModelForCausalLM.from_pretrained(tmp_path)
        return
    loaded = lrk.AutoLrkModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(TEXT).logits, stock(TEXT).logits, rtol=1e-4, atol=1e-5)


def test_a_mask_for_images_is_refused():
    """Tokens of an image see each other both ways."""
    model = lrk.patch(gemma3().eval())
    blocks = torch.tensor([[0, 1, 1, 1, 0, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"masks its attention by or_masks \(for images, by token"):
        model(TEXT, token_type_ids=blocks)
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"masks its attention by|not supported by the lrk"):
        torch.compile(model, backend="eager")(TEXT, token_type_ids=blocks)

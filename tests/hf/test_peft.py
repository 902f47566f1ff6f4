"""peft's adapters on a model patched before, and patched after."""

import copy

import peft
import pytest
import torch

import lrk

INPUT_IDS = torch.arange(2, 26).view(2, 12)
SKIPPED = torch.tensor([[0, 1, 2, 3, 50, 51, 52, 53, 90, 91, 92, 93]])
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]


def adapted(model, **options):
    """With an adapter that already does something."""
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4, target_modules=TARGETS, task_type="CAUSAL_LM", init_lora_weights=False, **options
    )
    return peft.get_peft_model(model, config).train()


def classes(model) -> list[type]:
    return [type(module) for module in model.modules()]


def step(model, **inputs):
    model.zero_grad()
    output = model(INPUT_IDS, labels=INPUT_IDS, use_cache=False, **inputs)
    output.loss.backward()
    gradients = {
        name.removeprefix("base_model.model."): each.grad
        for name, each in model.named_parameters()
        if each.requires_grad
    }
    return output.loss.detach(), gradients


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0])
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("options", "patch_first"),
    [
        pytest.param(
            {"use_dora": kind == "DoRA"},
            patch_first,
            marks=pytest.mark.support(f"{kind}, patched {'before' if patch_first else 'after'}"),
            id=f"{kind}-{'before' if patch_first else 'after'}",
        )
        for kind in ("LoRA", "DoRA")
        for patch_first in (True, False)
    ],
)
def test_adapters_train_as_on_the_stock_model(stock, options, patch_first):
    if options["use_dora"] and stock.config.model_type == "qwen3_moe":
        pytest.skip("peft has no DoRA for the parameters of experts, which TARGETS name here")
    attention = stock.config._attn_implementation
    plain = adapted(copy.deepcopy(stock), **options)
    if patch_first:
        model = adapted(lrk.patch(stock), **options)
    else:
        model = adapted(stock, **options)
        assert lrk.patch(model) is model
    assert model(INPUT_IDS, labels=INPUT_IDS).logits is None
    assert_same(step(model), step(plain))
    expected = plain.eval()(INPUT_IDS).logits
    merged = model.eval().merge_and_unload()
    torch.testing.assert_close(merged(INPUT_IDS).logits, expected, rtol=1e-3, atol=1e-5)
    assert merged.config._attn_implementation == "lrk"
    assert classes(lrk.unpatch(merged)) == classes(plain.merge_and_unload())
    assert merged.config._attn_implementation == attention


def test_unpatching_inside_an_adapter(llama):
    model = adapted(llama)
    before, expected = classes(model), step(model)
    with lrk.patched(model):
        assert_same(step(model), expected)
    assert classes(model) == before
    assert_same(step(model), expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_an_adapter_with_checkpointing_learns_across_skips(llama, checkpointed, use_reentrant):
    model = adapted(lrk.patch(llama))
    expected = step(model, position_ids=SKIPPED)
    model.enable_input_require_grads()
    checkpointed(model, use_reentrant=use_reentrant)
    assert_same(step(model, position_ids=SKIPPED), expected)
    gradient = expected[1]["model.layers.0.self_attn.q_proj.lora_B.default.weight"]
    assert gradient.abs().max() > 0


def test_saved_adapters_name_the_stock_class(llama, tmp_path):
    model = adapted(lrk.patch(copy.deepcopy(llama))).eval()
    model.save_pretrained(tmp_path)
    assert "lrk" not in (tmp_path / "adapter_config.json").read_text(encoding="utf-8").lower()
    again = peft.PeftModel.from_pretrained(llama, tmp_path).eval()
    torch.testing.assert_close(again(INPUT_IDS).logits, model(INPUT_IDS).logits)

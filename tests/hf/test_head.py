"""peft's adapters on the output embedding: the loss without logits is that of the adapted head."""

import copy

import peft
import pytest
import torch

import lrk
from lrk.hf.head import head_of

INPUT_IDS = torch.arange(2, 26).view(2, 12)
LORA = {"r": 3, "lora_alpha": 5, "init_lora_weights": False}
ADAPTERS = {
    "LoRA": {"target_modules": ["q_proj", "lm_head"]},
    "LoRA with a bias": {"target_modules": ["lm_head"], "lora_bias": True},
    "LoRA with dropout": {"target_modules": ["lm_head"], "lora_dropout": 0.4},
    "rank-stabilised LoRA": {"target_modules": ["lm_head"], "use_rslora": True},
    "modules_to_save": {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]},
}


def adapted(model, **options):
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(**LORA | options)).train()


def step(model):
    model.zero_grad()
    torch.manual_seed(2)
    loss = model(INPUT_IDS, labels=INPUT_IDS, use_cache=False).loss
    loss.backward()
    gradients = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    return loss.detach(), gradients


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0])
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("patch_first", [True, False])
@pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.support("adapters on lm_head")
def test_loss_and_gradients_as_stock(stock, options, patch_first):
    plain = adapted(copy.deepcopy(stock), **options)
    model = (
        adapted(lrk.patch(stock), **options)
        if patch_first
        else lrk.patch(adapted(stock, **options))
    )
    expected = step(plain)
    assert any("lm_head" in name for name in expected[1])
    assert_same(step(model), expected)
    assert model(INPUT_IDS, labels=INPUT_IDS).logits is None
    with model.disable_adapter(), plain.disable_adapter():
        losses = [each(INPUT_IDS, labels=INPUT_IDS).loss for each in (model, plain)]
    torch.testing.assert_close(*losses)


def test_several_adapters_and_merged_ones(llama):
    models = []
    for model in (copy.deepcopy(llama), lrk.patch(llama)):
        both = adapted(model, target_modules=["lm_head"])
        other = peft.LoraConfig(**LORA | {"r": 2, "target_modules": ["lm_head"]})
        torch.manual_seed(3)
        both.add_adapter("other", other)
        models.append(both)
    plain, model = models
    for each in models:
        each.base_model.set_adapter(["default", "other"])
    assert_same(step(model), step(plain))
    hidden = torch.randn(4, 48)
    head = head_of(model.get_base_model().lm_head, hidden)
    assert head.weight.shape == (61, 48 + 3 + 2)
    for each in models:
        each.eval().merge_adapter()
    losses = [each(INPUT_IDS, labels=INPUT_IDS).loss for each in models]
    torch.testing.assert_close(*losses)
    for each in models:  # peft takes merged adapters out again where they are disabled
        with each.disable_adapter():
            losses.append(each(INPUT_IDS, labels=INPUT_IDS).loss)
    torch.testing.assert_close(losses[3], losses[2])
    assert not torch.allclose(losses[3], losses[1])


def test_small_terms_are_not_rounded_to_the_weights():
    """In bfloat16 a term below 2^-9 of the weights would vanish in a sum."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 32, bias=False)
    model = adapted(torch.nn.Sequential(layer), target_modules=["0"])
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.lora_B["default"].weight.mul_(1e-3)
    hidden = torch.randn(16, 64)
    exact = head_of(layer.double(), hidden.double())
    term = exact.hidden[:, 64:] @ exact.weight[:, 64:].T
    rounded = head_of(layer.bfloat16(), hidden.bfloat16())
    ours = rounded.hidden[:, 64:].double() @ rounded.weight[:, 64:].double().T
    assert (ours - term).norm() < 2e-2 * term.norm()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"use_dora": True}, r"lm_head is a peft\.\S+Linear of the variant DoraLinearVariant; lrk"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [1]}}, "Trainable"),
    ],
)
def test_other_adapters_are_refused(llama, options, sentence):
    model = lrk.patch(adapted(llama, **{"target_modules": ["lm_head"]} | options))
    with pytest.raises(ValueError, match=sentence):
        model(INPUT_IDS, labels=INPUT_IDS)
    lrk.patch(model, cross_entropy=False)(INPUT_IDS, labels=INPUT_IDS).loss.backward()


def test_adapters_of_the_rows_of_a_batch_are_refused(llama):
    model = lrk.patch(adapted(llama, target_modules=["lm_head"])).eval()
    with pytest.raises(ValueError, match="with hooks"):
        model(INPUT_IDS, labels=INPUT_IDS, adapter_names=["default", "__base__"])

"""accelerate's hooks hold a module's forward; patch and unpatch reach through them."""

import copy

import pytest
import torch
from accelerate import Accelerator, cpu_offload, dispatch_model
from accelerate.hooks import remove_hook_from_module

import lrk

INPUT_IDS = torch.arange(2, 22).view(2, 10)
SKIPPED = torch.tensor([[0, 1, 2, 3, 50, 51, 52, 90, 91, 92]])


def classes(model) -> list[type]:
    return [type(module) for module in model.modules()]


@pytest.mark.support("device_map (accelerate's hooks)")
def test_dispatched_before_the_patch(stock):
    expected = stock(INPUT_IDS).logits
    patched = lrk.patch(copy.deepcopy(stock))(INPUT_IDS, position_ids=SKIPPED).logits
    model = dispatch_model(stock, device_map={"": "cpu"}, force_hooks=True)
    lrk.patch(model)
    torch.testing.assert_close(model(INPUT_IDS, position_ids=SKIPPED).logits, patched)
    assert model(INPUT_IDS, labels=INPUT_IDS).logits is None
    torch.testing.assert_close(lrk.unpatch(model)(INPUT_IDS).logits, expected)


def test_dispatched_after_the_patch(llama):
    before, expected = classes(llama), llama(INPUT_IDS).logits
    patched = lrk.patch(llama)(INPUT_IDS, position_ids=SKIPPED).logits
    model = dispatch_model(llama, device_map={"": "cpu"}, force_hooks=True)
    torch.testing.assert_close(model(INPUT_IDS, position_ids=SKIPPED).logits, patched)
    torch.testing.assert_close(lrk.unpatch(model)(INPUT_IDS).logits, expected)
    remove_hook_from_module(model, recurse=True)
    assert classes(model) == before
    torch.testing.assert_close(model(INPUT_IDS).logits, expected)


def test_weights_offloaded_to_another_device(llama):
    expected = llama.eval()(INPUT_IDS).logits
    model = lrk.patch(cpu_offload(llama, execution_device=torch.device("cpu")))
    torch.testing.assert_close(model(INPUT_IDS).logits, expected)


def test_mixed_precision_prepared_after_the_patch(llama):
    """accelerate keeps the forward it found; after unpatch it must lead to the stock one."""
    before = classes(llama)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected = llama(INPUT_IDS, labels=INPUT_IDS).loss.float()
    model = accelerator.prepare(lrk.patch(llama))
    assert model is llama
    assert model(INPUT_IDS, labels=INPUT_IDS).logits is None
    lrk.unpatch(model)
    assert classes(model) == before
    output = model(INPUT_IDS, labels=INPUT_IDS)
    assert output.logits is not None
    assert torch.equal(output.loss, expected)
    with lrk.patched(model):
        assert model(INPUT_IDS, labels=INPUT_IDS).logits is None


@pytest.mark.parametrize(
    "wrapped",
    [
        pytest.param(
            lambda model: Accelerator(mixed_precision="bf16", cpu=True).prepare(model),
            id="accelerate",
        ),
        pytest.param(
            lambda model: setattr(model, "forward", torch.compile(model.forward)),
            id="torch.compile",
        ),
    ],
)
def test_a_forward_kept_from_before_the_patch_is_refused(llama, wrapped):
    before = classes(llama)
    wrapped(llama)
    with pytest.raises(ValueError, match="model has a forward of its own, which would bypass lrk"):
        lrk.patch(llama)
    assert classes(llama) == before
    lrk.patch(llama, cross_entropy=False)

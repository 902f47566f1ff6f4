"""Gradient checkpointing of both kinds changes neither loss nor gradients."""

import copy

import pytest
import torch

import lrk

INPUT_IDS = torch.arange(2, 26).view(2, 12)
SKIPPED = torch.tensor([[0, 1, 2, 3, 50, 51, 52, 53, 90, 91, 92, 93]])
BOUNDARIES = torch.tensor([0, 12, 18, 24], dtype=torch.int32)
INPUTS = {
    "contiguous": {},
    "skipped positions": {"position_ids": SKIPPED},
    "packed documents": {
        "position_ids": torch.cat([SKIPPED, SKIPPED[:, :6].repeat(1, 2)]),
        "cu_seq_lens_q": BOUNDARIES,
        "cu_seq_lens_k": BOUNDARIES,
    },
}


def step(model, inputs):
    loss = model(INPUT_IDS, labels=INPUT_IDS, **inputs).loss
    loss.backward()
    return loss.detach(), {name: each.grad for name, each in model.named_parameters()}


@pytest.mark.parametrize("inputs", [pytest.param(each, id=name) for name, each in INPUTS.items()])
@pytest.mark.parametrize(
    "use_reentrant",
    [
        pytest.param(each, marks=pytest.mark.support(f"checkpointing, use_reentrant={each}"))
        for each in (True, False)
    ],
)
def test_same_loss_and_gradients(stock, checkpointed, use_reentrant, inputs):
    plain = lrk.patch(copy.deepcopy(stock))
    model = lrk.patch(stock)
    # Checkpointing by reentrance records nothing unless an input of the layers needs a gradient.
    model.enable_input_require_grads()
    model = checkpointed(model, use_reentrant=use_reentrant)
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    (expected_loss, expected), (loss, gradients) = step(plain, inputs), step(model, inputs)
    assert len(calls) == 2
    assert torch.equal(loss, expected_loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)

"""Weights of tokens in the fused loss of a patched model, against float64 logits."""

import pytest
import torch
from torch.nn import functional

import lrk

VOCABULARY = 61


def direct_losses(exact, tokens, labels):
    """(B, S) float64 in the places of the labels; 0 where nothing is predicted."""
    logits = exact(tokens).logits
    losses = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none"
    )
    return functional.pad(losses.view(len(labels), -1), (1, 0))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, VOCABULARY, (2, 13), generator=generator)
    labels = tokens.clone()
    labels[0, 3:6] = labels[1, 12] = -100
    return tokens, labels, torch.rand(2, 13, generator=generator) * 3


@pytest.mark.parametrize("num_items", [None, 40])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("function", [False, True])
def test_weighted_losses_and_gradients(llama, in_float64, batch, function, shifted, num_items):
    tokens, labels, weight = batch
    exact = in_float64(llama)
    losses = direct_losses(exact, tokens, labels)
    weights = weight.double()
    if function:
        # Weights that depend on the losses, but have no gradient.
        weights = torch.minimum(weights, losses.detach())
    kept = labels != -100
    kept[:, 0] = False
    truth = (weights * losses)[kept].sum() / (num_items or weights[kept].sum())
    truth.backward()

    options, given = {}, weight
    if shifted:
        options["shift_labels"] = functional.pad(labels, (0, 1), value=-100)[:, 1:]
        given = functional.pad(weight, (0, 1))[:, 1:]
    model = lrk.patch(llama)
    loss = model(
        tokens,
        labels=labels,
        token_weight=(lambda losses: torch.minimum(given, losses)) if function else given,
        num_items_in_batch=num_items,
        **options,
    ).loss
    loss.backward()
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
    for ours, direct in zip(model.parameters(), exact.parameters(), strict=True):
        scale = direct.grad.abs().max().item()
        torch.testing.assert_close(ours.grad.double(), direct.grad, rtol=0, atol=1e-4 * scale)


def test_weights_of_one_change_nothing(llama, batch):
    tokens, labels, weight = batch
    model = lrk.patch(llama)
    plain = model(tokens, labels=labels).loss
    for ones in (torch.ones_like(weight), torch.ones_like):
        torch.testing.assert_close(model(tokens, labels=labels, token_weight=ones).loss, plain)


def test_weights_without_labels_are_refused(llama, batch):
    tokens, _, weight = batch
    with pytest.raises(ValueError, match="token_weight is given without labels"):
        lrk.patch(llama)(tokens, token_weight=weight)

"""The decoder on `lrk.nn`: what its tokens see, and that it learns."""

import torch
from torch import Generator
from torch.nn.functional import cross_entropy

from examples.plain_pytorch import LINE, Decoder, batch, train


@torch.no_grad()
def test_a_document_sees_itself_over_its_skips_and_no_other():
    torch.manual_seed(0)
    model, given = Decoder(), batch(Generator().manual_seed(1))
    assert (given["position_ids"].diff(dim=1) > 1).any()
    inputs = [given[name] for name in ("tokens", "position_ids", "cu_seqlens")]
    hidden = model.hidden(*inputs)
    edited = given["tokens"].clone()
    edited[:, 0] = (edited[:, 0] + 1) % 64
    changed = (model.hidden(edited, *inputs[1:]) != hidden).any(-1)
    assert changed[:, : 2 * LINE].all()
    assert not changed[:, 2 * LINE :].any()


def test_the_loss_is_that_of_the_logits():
    torch.manual_seed(0)
    model, given = Decoder(), batch(Generator().manual_seed(1))
    labels = given.pop("labels")
    logits = model.head(model.hidden(**given))
    expected = cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(model(**given, labels=labels), expected)


def test_it_learns():
    _, losses = train(steps=20)
    assert losses[-1] < losses[0] - 0.1

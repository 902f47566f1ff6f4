"""A patched model computes what the stock model computes, as exactly as the tolerance rule asks.

Plain PyTorch is the stock model with eager attention, in the same dtype.
"""

import copy

import pytest
import torch
from torch import nn

import lrk
from lrk.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_as_exact_as, max_error

BATCH, LENGTH, VOCABULARY = 3, 33, 61


def token_ids(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (BATCH, LENGTH), generator=generator)


def padding(side: str) -> torch.Tensor:
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    for row, count in enumerate((0, 5, 32)):
        if count:
            mask[row, slice(None, count) if side == "left" else slice(-count, None)] = 0
    return mask


def batch(kind: str) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": token_ids(), "labels": token_ids()}
    if kind.endswith("padding"):
        mask = padding(kind.split()[0])
        inputs["attention_mask"] = mask
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        inputs["labels"] = inputs["labels"].masked_fill(mask == 0, -100)
    if kind == "shifted labels":
        inputs["shift_labels"] = token_ids(1)
    if kind == "num_items_in_batch":
        inputs["num_items_in_batch"] = torch.tensor(77)
    return inputs


def real_logits(logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    mask = inputs.get("attention_mask")
    return logits if mask is None else logits[mask.bool()]


def step(model: nn.Module, inputs: dict, **options) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Logits, loss and the gradients of all parameters."""
    model.zero_grad()
    output = model(**inputs, use_cache=False, **options)
    output.loss.backward()
    return (
        real_logits(output.logits, inputs).detach(),
        output.loss.detach(),
        {name: parameter.grad for name, parameter in model.named_parameters()},
    )


def assert_same_step(ours, plain, truth) -> None:
    assert_as_exact_as(ours[0], plain[0], truth[0], OUTPUT_FACTOR, "logits")
    # The error of one number is a matter of luck: that of the logits, of which the loss is a mean
    # with slopes of at most 2, is what a loss may have.
    assert max_error(ours[1], truth[1]) <= 2 * max_error(plain[0], truth[0])
    assert ours[2].keys() == plain[2].keys()
    # So is that of one small tensor behind many others: of each the error relative to its largest
    # value may be what the worst of the model's is in plain PyTorch.
    bound = GRADIENT_FACTOR * max(relative_errors(plain[2], truth[2]).values())
    for name, error in relative_errors(ours[2], truth[2]).items():
        assert error <= bound, f"{name}: relative error {error:.2e} exceeds {bound:.2e}"


def relative_errors(gradients: dict, truth: dict) -> dict[str, float]:
    """Of each parameter's gradient the largest error over the largest true value."""
    return {
        name: max_error(gradient, truth[name]) / truth[name].abs().max().item()
        for name, gradient in gradients.items()
    }


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("plain", marks=pytest.mark.support("logits, loss and gradients")),
        pytest.param("left padding", marks=pytest.mark.support("left padding")),
        pytest.param("right padding", marks=pytest.mark.support("right padding")),
        "shifted labels",
        "num_items_in_batch",
    ],
)
def test_logits_loss_and_gradients(stock, in_float64, checkpointed, kind, checkpointing):
    inputs = batch(kind)
    truth = step(in_float64(stock), inputs)
    model = lrk.patch(copy.deepcopy(stock))
    stock.set_attn_implementation("eager")
    plain = step(stock, inputs)
    if checkpointing:
        checkpointed(model)
    assert_same_step(step(model, inputs, output_logits=True), plain, truth)


@pytest.mark.parametrize("part", ["rope", "attention", "cross_entropy"])
def test_each_part_alone(llama, in_float64, part):
    inputs = batch("plain")
    truth = step(in_float64(llama), inputs)
    parts = {"rope": False, "attention": False, "cross_entropy": False} | {part: True}
    model = lrk.patch(copy.deepcopy(llama), **parts)
    llama.set_attn_implementation("eager")
    plain = step(llama, inputs)
    options = {"output_logits": True} if part == "cross_entropy" else {}
    assert_same_step(step(model, inputs, **options), plain, truth)


@pytest.mark.support("packed documents")
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_documents_equal_the_documents_alone(
    stock, in_float64, checkpointed, rows, checkpointing
):
    lengths = [[5, 1, 20, 7], [33]][:rows]
    input_ids = token_ids()[:rows]
    flat = [length for row in lengths for length in row]
    boundaries = torch.tensor([0, *flat]).cumsum(0).to(torch.int32)
    position_ids = torch.cat([torch.arange(length) for length in flat]).view(rows, LENGTH)
    # The first token of a document is predicted by nothing.
    labels = input_ids.flatten().index_fill(0, boundaries[:-1].long(), -100).view(rows, LENGTH)

    def alone(model):
        pieces = input_ids.flatten().split(flat)
        logits = [model(piece[None], use_cache=False).logits[0] for piece in pieces]
        targets = torch.cat([nn.functional.pad(piece[1:], (0, 1), value=-100) for piece in pieces])
        logits = torch.cat(logits)
        loss = nn.functional.cross_entropy(logits, targets)
        model.zero_grad()
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        return logits.detach(), loss.detach(), gradients

    truth = alone(in_float64(stock))
    model = lrk.patch(copy.deepcopy(stock))
    stock.set_attn_implementation("eager")
    plain = alone(stock)
    if checkpointing:
        checkpointed(model)
    packed = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
    packed |= {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries}
    logits, loss, gradients = step(model, packed, output_logits=True)
    assert_same_step((logits.flatten(0, 1), loss, gradients), plain, truth)


def test_backend_by_name(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    loaded = type(llama).from_pretrained(tmp_path, attn_implementation="lrk")
    assert loaded.config._attn_implementation == "lrk"
    inputs = batch("left padding")
    real = inputs["attention_mask"].bool()
    expected, logits = llama(**inputs).logits[real], loaded(**inputs).logits[real]
    torch.testing.assert_close(logits, expected)


def test_logits_on_request_only(llama):
    inputs = batch("plain")
    with lrk.patched(llama):
        assert llama(**inputs).logits is None
        assert llama(**inputs, output_logits=True).logits.shape == (BATCH, LENGTH, VOCABULARY)
        kept = llama(input_ids=inputs["input_ids"], logits_to_keep=2)
        assert kept.loss is None
        assert kept.logits.shape == (BATCH, 2, VOCABULARY)
        assert isinstance(llama(**inputs, return_dict=False), tuple)


def test_frequencies_survive_a_cast_of_the_model(llama):
    """A cast to bfloat16 and back rounds the weights, and in stock transformers the frequencies."""
    model = copy.deepcopy(llama).to(torch.bfloat16).float()
    rounded = {"input_ids": token_ids()[:1], "position_ids": torch.arange(LENGTH)[None]}
    model.model.rotary_emb = copy.deepcopy(llama.model.rotary_emb)
    expected = model(**rounded).logits
    model.model.rotary_emb.to(torch.bfloat16).float()
    assert (model(**rounded).logits - expected).abs().max() > 1e-3
    with lrk.patched(model):
        torch.testing.assert_close(model(**rounded).logits, expected)
        model.to(torch.bfloat16).float()
        torch.testing.assert_close(model(**rounded).logits, expected)

"""What the output of a patched causal language model holds, and the divisor of its loss."""

import copy

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from transformers import Trainer, TrainingArguments

import lrk
from lrk.analysis.scores import token_logits
from lrk.eval.losses import check_head
from lrk.hf.cache_name import CACHE_NAME, OLD_NAME, cache_of
from lrk.hf.canary import tiny_config, tiny_model
from lrk.hf.logit_scale import logit_scale

INPUT_IDS = torch.arange(2, 26).view(2, 12)
DATA = [{"input_ids": row, "labels": row} for row in INPUT_IDS]


@pytest.fixture
def no_state_left():
    """Of accelerate, which a process has once."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def trainer(model, tmp_path, **options) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, **options
    )
    return Trainer(
        model,
        arguments,
        eval_dataset=DATA,
        compute_metrics=lambda found: {"sum": float(np.abs(found.predictions).sum())},
    )


@pytest.mark.usefixtures("no_state_left")
@pytest.mark.parametrize("prediction_loss_only", [False, True])
def test_metrics_and_predictions_of_a_trainer(llama, tmp_path, prediction_loss_only):
    found = []
    for model in (copy.deepcopy(llama), lrk.patch(llama)):
        made = trainer(model, tmp_path, prediction_loss_only=prediction_loss_only)
        found.append((made.evaluate(), made.predict(DATA).predictions))
    (expected, theirs), (metrics, predictions) = found
    assert metrics["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    if prediction_loss_only:
        assert predictions is None
    else:
        assert metrics["eval_sum"] == pytest.approx(expected["eval_sum"], rel=1e-5)
        np.testing.assert_allclose(predictions, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("output_logits", [None, True, False])
def test_logits_where_they_may_be_asked_for(llama, training, output_logits):
    model = lrk.patch(llama.train(training))
    options = {} if output_logits is None else {"output_logits": output_logits}
    output = model(INPUT_IDS, labels=INPUT_IDS, **options)
    formed = not training if output_logits is None else output_logits
    assert (output.logits is not None) == formed
    # As a tuple each has its place: what follows is not taken for logits.
    for loss, logits, cache in (
        output.to_tuple(),
        output[:],
        model(INPUT_IDS, labels=INPUT_IDS, return_dict=False, **options),
    ):
        torch.testing.assert_close(loss, output.loss)
        assert (logits is not None) == formed
        assert cache.get_seq_length() == cache_of(output).get_seq_length() == 12
    assert list(output) == [name for name in output.keys() if output[name] is not None]  # noqa: SIM118


@pytest.mark.parametrize("weighs", [False, True])
@pytest.mark.parametrize("items", [7, torch.tensor(7), torch.tensor([7]), torch.tensor([[7]])])
def test_the_number_of_items_in_any_shape_that_stock_takes(llama, items, weighs):
    expected = llama(INPUT_IDS, labels=INPUT_IDS, num_items_in_batch=items).loss
    weight = {"token_weight": torch.ones_like} if weighs else {}
    loss = lrk.patch(llama)(INPUT_IDS, labels=INPUT_IDS, num_items_in_batch=items, **weight).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()


@pytest.mark.parametrize("weight", [{}, {"token_weight": lambda losses: losses}])
def test_a_loss_multiplied_in_place_runs_the_hooks_on_it(llama, weight):
    """As FSDP2 hooks it, which brings the head's weight, and as the trainer multiplies it."""
    loss = lrk.patch(llama)(INPUT_IDS, labels=INPUT_IDS, num_items_in_batch=30, **weight).loss
    seen = []
    loss.register_hook(seen.append)
    loss *= 2
    loss.backward()
    assert seen == [2.0]


def test_several_numbers_of_items_are_refused(llama):
    with pytest.raises(ValueError, match="num_items"):
        lrk.patch(llama)(INPUT_IDS, labels=INPUT_IDS, num_items_in_batch=torch.tensor([7, 8]))


def test_another_head_is_refused(llama):
    model = lrk.patch(llama)
    model.lm_head = nn.Sequential(llama.lm_head)
    with pytest.raises(ValueError, match=r"lm_head is a torch\.\S+Sequential; lrk's loss needs"):
        model(INPUT_IDS, labels=INPUT_IDS)


@pytest.mark.parametrize("model_type", ["gpt_oss", "mixtral", "qwen3_moe"])
def test_the_balance_of_experts(model_type):
    """As the stock forward adds it to the loss, and lists it in its output."""
    torch.manual_seed(0)
    stock = tiny_model(tiny_config(model_type, router_aux_loss_coef=0.3)).train()
    model = lrk.patch(copy.deepcopy(stock))
    for options in ({}, {"output_router_logits": True}):
        found = []
        for each in (stock, model):
            each.zero_grad()
            output = each(INPUT_IDS, labels=INPUT_IDS, use_cache=False, **options)
            output.loss.backward()
            found.append((output, each.model.layers[0].self_attn.q_proj.weight.grad))
        (expected, gradient), (output, ours) = found
        torch.testing.assert_close(output.loss, expected.loss)
        torch.testing.assert_close(ours, gradient, rtol=1e-3, atol=1e-6)
        assert (output.aux_loss is None) == (expected.aux_loss is None) == (not options)
        assert output.logits is None
        assert output.to_tuple()[1 + bool(options)] is None
        assert len(output.to_tuple()) == len(expected.to_tuple())
    torch.testing.assert_close(output.aux_loss, expected.aux_loss)
    torch.testing.assert_close(output.router_logits, expected.router_logits)


def test_caps_and_divisors_reach_losses_without_logits():
    """Of evaluation and of LongCE too, which multiply hidden states and weights themselves."""
    for model_type in ("gemma2", "gemma3_text", "granite"):
        torch.manual_seed(0)
        model = tiny_model(tiny_config(model_type)).eval()
        check_head(model, INPUT_IDS[0])  # refuses other logits than the model's
        logits = model(INPUT_IDS[:1]).logits[0, :-1]
        expected = logits.gather(-1, INPUT_IDS[0, 1:, None])[:, 0]
        torch.testing.assert_close(token_logits(model, INPUT_IDS[0])[1:], expected)
        scale = logit_scale(model)
        assert (scale.softcap or scale.divisor) is not None
        assert logit_scale(lrk.patch(model)) == scale


@torch.no_grad()
@pytest.mark.skipif(CACHE_NAME == OLD_NAME, reason="stock models take them from 5.24 on")
def test_logits_to_keep_of_each_row(llama):
    kept = (torch.tensor([[1, 3, 5], [2, 4, 6]]), INPUT_IDS % 3 == 0, torch.tensor([0, 4]), 3)
    expected = [llama.eval()(INPUT_IDS, logits_to_keep=each).logits for each in kept]
    lrk.patch(llama)
    for each, logits in zip(kept, expected, strict=True):
        torch.testing.assert_close(llama(INPUT_IDS, logits_to_keep=each).logits, logits)

"""Losses against full logits; windows, bins and key tokens against hand-made cases."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GPT2Config

import lrk
from lrk.eval.longppl import find_key_tokens, key_tokens
from lrk.eval.losses import check_head, loss_by_position, mean_loss, token_losses, windows


def full_logit_loss(model, tokens, index: int, start: int) -> float:
    """-log p(token `index` | tokens from `start` to it), from the model's own logits."""
    logits = model(tokens[None, start:index]).logits[0, -1].double()
    return -logits.log_softmax(-1)[tokens[index]].item()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(640, (23,), generator=torch.Generator().manual_seed(1))


def test_windows_by_hand():
    assert list(windows(10, 4, 2)) == [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]
    assert list(windows(9, 4, 3)) == [(0, 1, 4), (3, 4, 7), (6, 7, 9)]
    assert list(windows(3, 8, 2)) == [(0, 1, 3)]


@pytest.mark.parametrize(("window", "stride"), [(2, 1), (5, 2), (7, 6), (16, 3), (64, 9)])
def test_each_token_is_scored_once_with_at_least_the_overlap_as_context(window, stride):
    scored = []
    for start, first, stop in windows(41, window, stride):
        assert stop - start <= window
        assert first - start >= (window - stride if start else 1)
        scored += range(first, stop)
    assert scored == list(range(1, 41))


@pytest.mark.parametrize("stride", [0, 4, 5])
def test_a_stride_without_overlap_is_refused(stride):
    with pytest.raises(ValueError, match=f"stride is {stride}; it must be at least 1 and less"):
        list(windows(10, 4, stride))


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize(("window", "stride"), [(None, 1), (7, 3), (6, 5), (50, 4)])
def test_losses_are_those_of_the_full_logits(model, tokens, window, stride, patched):
    expected = torch.tensor(
        [
            full_logit_loss(model, tokens, index, start)
            for start, first, stop in windows(23, window or 23, stride)
            for index in range(first, stop)
        ]
    )
    if patched:
        lrk.patch(model)
    losses = token_losses(model, tokens, window, stride)
    assert losses[0].isnan()
    torch.testing.assert_close(losses[1:], expected, rtol=1e-4, atol=1e-5)
    check_head(model, tokens)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=640, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0),
        Gemma2Config(
            vocab_size=640,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            initializer_range=0.5,
            final_logit_softcapping=3.0,
        ),
    ],
    ids=["gpt2", "gemma2 with softcap"],
)
def test_models_that_lrk_does_not_patch(config, tokens):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    check_head(model, tokens)
    expected = [full_logit_loss(model, tokens, index, 0) for index in range(1, 23)]
    torch.testing.assert_close(
        token_losses(model, tokens)[1:], torch.tensor(expected), rtol=1e-4, atol=1e-4
    )


def test_a_model_that_scales_its_logits_is_refused(tokens):
    config = CohereConfig(
        vocab_size=640,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
        logit_scale=0.0625,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="CohereForCausalLM, whose logits are not"):
        check_head(model, tokens)


def test_one_token_is_no_text(model):
    with pytest.raises(ValueError, match="input_ids has 1 tokens"):
        token_losses(model, torch.tensor([3]))


NAN = math.nan


def test_the_mean_is_over_tokens_and_not_over_texts():
    losses = [torch.tensor([NAN, 1.0]), torch.tensor([NAN, 2.0, 3.0, 6.0])]
    found = mean_loss(losses)
    assert (found.loss, found.tokens) == (3.0, 4)
    assert found.perplexity == pytest.approx(math.exp(3.0))
    chosen = [torch.tensor([True, False]), torch.tensor([True, False, True, False])]
    assert mean_loss(losses, chosen).loss == 3.0
    nothing = mean_loss(losses, [torch.zeros(size, dtype=torch.bool) for size in (2, 4)])
    assert (nothing.loss, nothing.perplexity, nothing.tokens) == (None, None, 0)


def test_loss_by_position():
    losses = [torch.tensor([NAN, 1, 2, 3, 4, 5.0]), torch.tensor([NAN, 3, 4, 5, 6, 7.0])]
    binned = loss_by_position(losses, 3)
    assert [(start, stop, mean.loss, mean.tokens) for start, stop, mean in binned] == [
        (0, 2, 2.0, 2),
        (2, 4, 3.5, 4),
        (4, 6, 5.5, 4),
    ]
    assert len(loss_by_position(losses, 100)) == 5


def test_key_tokens_by_the_definition():
    #                          key  difference 2  long 2   sure before  no context
    short = torch.tensor([4.5, 3.5, 4.5, 0.5, NAN])
    long = torch.tensor([1.5, 1.5, 2.0, 0.1, NAN])
    assert key_tokens(short, long).tolist() == [True, False, False, False, False]


def test_key_tokens_are_found_by_windows_of_the_same_model(model, tokens):
    """A short context of 6 to 7 tokens; with a window of 8 the first 8 tokens are never key."""
    found = find_key_tokens(model, tokens, short_context=6, short_stride=2)
    expected = [False] * 8
    for start, first, stop in list(windows(23, 8, 2))[1:]:
        for index in range(first, stop):
            short = full_logit_loss(model, tokens, index, start)
            long = full_logit_loss(model, tokens, index, 0)
            expected.append(short - long > 2 and long < 2)
    assert found.tolist() == expected


def test_a_token_that_only_the_long_context_tells_is_key(model, tokens, monkeypatch):
    """A model that is sure of a token exactly where it has seen it before."""

    def losses(_, ids, window=None, stride=1):
        result = torch.full((len(ids),), NAN)
        for start, first, stop in windows(len(ids), window or len(ids), stride):
            for index in range(first, stop):
                result[index] = 0.5 if ids[index] in ids[start:index] else 5.0
        return result

    monkeypatch.setattr("lrk.eval.longppl.token_losses", losses)
    ids = torch.tensor([7, 1, 2, 3, 4, 5, 6, 7, 8, 7, 9, 1])
    key = find_key_tokens(model, ids, short_context=3, short_stride=1)
    # Token 7 at index 7 was last seen 7 before, at index 9 only 2 before; token 1 at 11 was at 1.
    assert key.nonzero().flatten().tolist() == [7, 11]


def test_losses_that_are_not_finite_are_refused_and_not_left_out_of_a_mean(model):
    """An overflow in the middle of a text: the tokens around it have losses all the same."""
    forward = model.base_model.forward

    def overflowing(tokens, **options):
        states = forward(tokens, **options)[0]
        states[0, 20] = torch.nan
        return (states,)

    model.base_model.forward = overflowing
    with pytest.raises(ValueError, match="not finite at 1 of 40 tokens, first at position 21"):
        token_losses(model, torch.arange(40))

"""Samples that ask for a needle, and the loss of the answer alone."""

import pytest
import torch

from lrk.eval.haystack import FILLER, Essay
from lrk.longrope.needles import NeedleSample, fingerprint, needle_loss, needle_samples
from studies.tiny import prose, train_tokenizer

TOKENIZER = train_tokenizer([prose(200, 0), "0123456789 " * 20], 320)


def split(sample: NeedleSample) -> tuple[str, str]:
    """The text before the answer, and the answer."""
    ids, answer = sample.input_ids[0], sample.labels[0] != -100
    assert torch.equal(sample.labels[0][answer], ids[answer])
    first = int(answer.int().argmax())
    assert answer[first:].all(), "the answer ends the text"
    return TOKENIZER.decode(ids[:first]), TOKENIZER.decode(ids[first:])


def test_the_needle_is_first_and_its_number_is_asked_for():
    samples = needle_samples(TOKENIZER, [], 3, 700, seed=0)
    answers = set()
    for sample in samples:
        assert 600 < sample.input_ids.shape[1] <= 700
        text, answer = split(sample)
        number = answer.strip()
        assert 10**6 <= int(number) < 10**7
        needle, haystack = text.split("afterwards.\n")[1].split("\n", 1)
        assert needle == f"One of the special magic numbers for long-context is: {number}."
        assert haystack.startswith(FILLER)
        assert text.endswith(" mentioned in the provided text is")
        answers.add(number)
    assert len(answers) == 3


def test_haystacks_take_turns():
    essays = [Essay(("winter.",) * 10), Essay(("pass.",) * 10)]
    samples = needle_samples(TOKENIZER, essays, 3, 600, seed=0)
    texts = [split(sample)[0] for sample in samples]
    assert ["winter." in text for text in texts] == [True, False, True]


def test_the_seed_decides():
    one, again, other = (
        fingerprint(needle_samples(TOKENIZER, [], 2, 600, seed)) for seed in (0, 0, 1)
    )
    assert one == again != other


def test_too_short_a_target():
    with pytest.raises(ValueError, match=r"^target_length 100 is too short for task rope: its"):
        needle_samples(TOKENIZER, [], 1, 100, seed=0)


def test_the_loss_is_of_the_answers_alone(model, samples):
    total, tokens = 0.0, 0
    for sample in samples:
        with torch.no_grad():
            logits = model(sample.input_ids).logits[:, :-1].double()
        labels = sample.labels[:, 1:]
        kept = labels != -100
        losses = -logits.log_softmax(-1)[kept].gather(-1, labels[kept][:, None])
        total, tokens = total + losses.sum().item(), tokens + len(losses)
    assert tokens == 15
    assert needle_loss(model, samples) == pytest.approx(total / tokens, rel=1e-6)


def test_no_logits_are_formed(model, samples, monkeypatch):
    forward, vocabulary = torch.nn.Linear.forward, model.config.vocab_size

    def without_logits(self, x):
        assert self.out_features != vocabulary
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", without_logits)
    needle_loss(model, samples)


def test_a_loss_that_is_not_finite(model, samples):
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match="whose loss is nan, by which no factors can be compared"):
        needle_loss(model, samples)

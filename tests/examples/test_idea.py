import torch

from examples import idea


def test_the_last_document_begins_after_the_last_skip():
    sample = torch.tensor([0, 1, 2, 7, 8, 50, 51, 52])
    assert idea.document_of_the_last(sample).tolist() == [False] * 5 + [True] * 3
    assert idea.document_of_the_last(torch.arange(9)).all()


def test_positions_are_of_the_sampler():
    sample = idea.skipped_positions()
    assert len(sample) == idea.TOKENS
    assert sample[0] == 0
    assert sample[-1] < idea.TARGET
    assert (sample.diff() != 1).sum() <= idea.SEGMENTS - 1


def test_what_is_said_is_what_is_drawn(tmp_path, drawn_texts):
    idea.draw(tmp_path / "idea.png")
    sample = idea.skipped_positions()
    seen = int(idea.document_of_the_last(sample).sum())
    assert f"as many tokens train distances up to {int(sample[-1]):,}" in drawn_texts
    assert f"each skip begins a new document: the last token sees {seen:,}" in drawn_texts

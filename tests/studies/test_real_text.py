"""The study of real text: its texts, what it asks of them, its differences, and a rehearsal."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from studies.real_text import corpus as texts
from studies.real_text.__main__ import main
from studies.real_text.corpus import Document
from studies.real_text.differences import Runs, by_seed, difference, loss_at, share_right
from studies.real_text.extension import _lines
from studies.real_text.measurement import read, read_within
from studies.real_text.methods import methods, samples_a_step, steps, training_tokens
from studies.real_text.model import config
from studies.real_text.names import CUE, asked_names
from studies.real_text.repeats import repeats
from studies.real_text.report import evidence
from studies.real_text.scale import FULL, REHEARSAL
from studies.real_text.study import Results, missing

CODE = """\
import rendezvous_of_points

class Voyager:
    # __repr__ is guessed
    def __repr__(self): return "far_away_galaxy"

    def near(self):
        self.far_away_galaxy = rendezvous_of_points(self)
        self.unrelated_to_anything = 1
        return self.far_away_galaxy
"""


@pytest.fixture(scope="module")
def tokenizer():
    return texts._trained_tokenizer([CODE], 270)


@pytest.fixture(scope="module")
def document(tokenizer):
    return Document("voyager.py", CODE, torch.tensor(tokenizer.encode(CODE).ids))


def test_a_tokenizer_is_the_same_again_and_loses_nothing(tokenizer, document):
    assert tokenizer.to_str() == texts._trained_tokenizer([CODE], 270).to_str()
    assert tokenizer.decode(document.tokens.tolist()) == CODE


def test_names_are_asked_for_that_stood_once_before(tokenizer, document):
    asked = asked_names(document, tokenizer)
    found = [
        tokenizer.decode(document.tokens[each.places.start - CUE : each.places.stop].tolist())
        for each in asked
    ]
    # The galaxy is in a string before, and for a third time at the end.
    assert [name.strip() for name in found] == ["far_away_galaxy", "rendezvous_of_points"]
    for each in asked:
        assert torch.equal(document.tokens[list(each.places)], document.tokens[list(each.before)])
        assert each.distance > 0


def test_names_end_where_a_document_is_cut(tokenizer):
    cut = CODE[: CODE.index("(self)\n        self.un")] + "('"
    document = Document("cut.py", cut, torch.tensor(tokenizer.encode(cut).ids))
    assert len(asked_names(document, tokenizer)) == 2


def test_held_out_files_are_long_and_no_tests():
    names = texts.long_enough(FULL)
    assert len(names) >= FULL.documents
    assert not [name for name in names if name.startswith(("test/", "encodings/"))]
    assert texts.version(FULL) != texts.version(REHEARSAL)


def test_repeats_quote_what_stands_before():
    text = torch.arange(1000, 1256).view(2, 128)
    ids, labels = repeats(text, torch.Generator().manual_seed(0))
    for row, given in zip(ids, text, strict=True):
        body = int((row == given).int().cummin(0).values.sum())
        assert 32 <= body <= 64 + 1
        assert torch.isin(row[body:], row[:body]).all()
    labelled = labels != -100
    assert torch.equal(ids[labelled], labels[labelled])
    # What is learned behind the text follows on what stands before it.
    behind = labelled[:, 64:]
    assert behind.float().mean() > 0.7
    assert (ids.diff(dim=1)[:, 64:] == 1)[behind[:, 1:]].all()


def test_methods_train_on_as_many_tokens_but_for_those_that_say_so():
    trained = [method for method in methods(FULL) if method.length is not None]
    plain = [method for method in trained if method.share == 1 and not method.views]
    tokens = [training_tokens(method, FULL) for method in plain]
    assert max(tokens) - min(tokens) <= 0.01 * max(tokens)
    full = next(method for method in trained if method.length == FULL.target)
    third = next(method for method in trained if method.share < 1)
    assert steps(third, FULL) * samples_a_step(third, FULL) == steps(full, FULL)
    views = next(method for method in trained if method.views)
    assert training_tokens(views, FULL) == pytest.approx(3 / 4 * tokens[0], rel=0.02)


def test_lines_are_segments(tokenizer, document):
    ends = torch.tensor([tokenizer.decode([n])[:1] == "\n" for n in range(270)])
    lengths = _lines(document.tokens, _corpus(ends))
    assert int(lengths.sum()) == len(document.tokens)
    lines = [tokenizer.decode(part.tolist()) for part in document.tokens.split(lengths.tolist())]
    assert "".join(lines) == CODE
    assert len(lines) == CODE.count("\n") + 1
    assert all(line.startswith("\n") and line.count("\n") == 1 for line in lines[1:])


def _corpus(ends_line):
    return texts.Corpus(None, None, None, [], ends_line)


def test_a_model_that_sees_its_window_alone_reads_the_same_tokens():
    torch.manual_seed(0)
    scale = replace(REHEARSAL, window=16)
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(config(scale))
    document = Document("x.py", "", torch.randint(0, scale.vocabulary, (64,)))
    whole, within = read(model, document), read_within(model, document, 16)
    assert whole.loss.shape == within.loss.shape == (63,)
    torch.testing.assert_close(whole.loss[:15], within.loss[:15])
    alone = read(model, Document("x.py", "", document.tokens[48:]))
    torch.testing.assert_close(within.loss[-8:], alone.loss[-8:])


def _runs(right):
    loss = np.arange(12.0).reshape(2, 3, 2)
    return Runs(loss, loss[..., 0], right, loss, loss, np.array([[4.0, 0.0], [2, 2], [0, 4]]))


def test_differences_are_paired():
    right = np.array([[[4, 0], [1, 0], [0, 2]], [[2, 0], [1, 1], [0, 4]]], dtype=float)
    runs = _runs(right)
    assert by_seed(share_right(0, 0), runs) == [5 / 6, 3 / 6]
    assert by_seed(loss_at(0, 1), runs) == [2.5, 8.5]
    better = runs._replace(loss=runs.loss - 0.25)
    found = difference(loss_at(0, 1), better, runs)
    assert found.mean == pytest.approx(-0.25)
    assert found.high - found.low == pytest.approx(0, abs=1e-9)
    same = difference(share_right(0, 1), runs, runs)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    single = runs._replace(loss=runs.loss[:1])
    assert difference(loss_at(0, 1), single, single).mean == 0


def test_a_rehearsal_runs_every_line_and_goes_on_where_it_was(tmp_path, capsys):
    words = ["--rehearse", "--seeds", "2", "--processes", "1", "--output_dir", str(tmp_path)]
    main(words)
    said = capsys.readouterr().out
    said = said[said.index("Version") : said.rindex("\n\n")]
    for method in methods(REHEARSAL):
        assert f"| {method.name} |" in said
    folder = tmp_path / texts.version(REHEARSAL)
    content = json.loads((folder / "results.json").read_text())
    assert missing(content["rows"], 2, REHEARSAL) == []
    assert (folder / "real_text.png").stat().st_size > 10_000
    rows, comparisons = evidence(content)
    assert len({(row["task"], row["method"], row["length"]) for row in rows.values()}) == len(rows)
    for one in comparisons.values():
        assert one["low"] <= one["difference"] <= one["high"]
    main([*words, "--report"])
    assert capsys.readouterr().out.startswith(said)


def test_results_of_other_texts_are_refused(tmp_path):
    results = Results(tmp_path / "results.json", REHEARSAL)
    results.add({"method": "nothing", "seed": 0})
    assert Results(results.path, REHEARSAL).rows == results.rows
    with pytest.raises(ValueError, match="has results of version"):
        Results(results.path, FULL)
    assert len(missing(results.rows, 2, REHEARSAL)) == len(missing([], 2, REHEARSAL)) - 1


def test_one_seed_has_no_interval(capsys):
    with pytest.raises(SystemExit):
        main(["--seeds", "1"])
    assert "--seeds is 1; it must be from 2, for intervals, to 10" in capsys.readouterr().err

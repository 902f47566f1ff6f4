from pathlib import Path

import numpy as np
import pytest

from lrk.data import Preparation, SelectionRun, Share, prepare, select
from lrk.data.select import report
from lrk.recipe import ImpactfulTokens, Samples, selection_of
from lrk.recipe.prepared import open_prepared, read_manifest

SPAN, LENGTH = 120, 30


@pytest.fixture
def prepared(corpus, tokenizer, tmp_path) -> str:
    prepare(Preparation(corpus, shard_characters=3000), tokenizer, tmp_path / "prepared")
    return str(tmp_path / "prepared")


@pytest.fixture
def table(tokenizer, tmp_path) -> str:
    """The tokens of one word."""
    path = tmp_path / "table.json"
    path.write_text(ImpactfulTokens.of(tokenizer, tokenizer(" winter")["input_ids"]).to_json())
    return str(path)


@pytest.fixture
def run(prepared, table) -> SelectionRun:
    return SelectionRun(prepared, SPAN, LENGTH, "impactful", table, seed=3)


def test_it_is_what_training_chooses_on_the_fly(run, tokenizer, tmp_path):
    select(run, tokenizer, tmp_path / "out")
    selected = open_prepared([str(tmp_path / "out")], tokenizer)
    selection = selection_of("impactful", SPAN, tokenizer, run.impactful_tokens, 3)
    live = Samples(open_prepared([run.data], tokenizer), LENGTH, selection=selection)
    stored = Samples(selected, LENGTH)
    assert len(live) == len(stored) > 20
    for one, other in zip(live, stored, strict=True):
        assert one["input_ids"].tolist() == other["input_ids"].tolist()
        for part, same in zip(one["segment_lengths"], other["segment_lengths"], strict=True):
            assert part.tolist() == same.tolist()


def test_no_token_is_dropped_silently(run, tokenizer, tmp_path):
    manifest = select(run, tokenizer, tmp_path / "out")
    rows = open_prepared([str(tmp_path / "out")], tokenizer).with_format("numpy")[:]
    before = open_prepared([run.data], tokenizer)
    lengths = np.array(list(map(len, rows["input_ids"])))
    assert rows["chosen_from"].sum() == sum(map(len, before["input_ids"]))
    chosen = rows["chosen_from"] > LENGTH
    assert (lengths[chosen] == LENGTH).all()
    assert (lengths[~chosen] == rows["chosen_from"][~chosen]).all()
    assert (rows["covered"] <= rows["chosen_from"]).all()
    assert (rows["covered"] >= lengths).all()
    assert manifest is not None
    assert manifest.summary == {
        "documents": len(lengths),
        "tokens": lengths.sum(),
        "samples": chosen.sum(),
        "kept": LENGTH * chosen.sum(),
        **{
            name: rows[name][chosen].sum()
            for name in ("chosen_from", "covered", "qualifying", "filled")
        },
    }
    text = report(dict(manifest.summary))
    assert f"{chosen.sum()} samples of 30 tokens" in text
    assert f"{(~chosen).sum()} rows are shorter than a sample" in text


def test_shares_make_the_same_folder(run, tokenizer, tmp_path):
    select(run, tokenizer, tmp_path / "out")
    assert select(run, tokenizer, tmp_path / "shared", Share(1, 2)) is None
    select(run, tokenizer, tmp_path / "shared", Share(0, 2))
    for path in (tmp_path / "out").glob("[!.]*"):
        assert path.read_bytes() == (tmp_path / "shared" / path.name).read_bytes()
    (tmp_path / "out" / "documents-00001.arrow").unlink()
    assert select(run, tokenizer, tmp_path / "out") == read_manifest(tmp_path / "shared")


def test_what_is_refused(run, prepared, table, tokenizer, tmp_path):
    out = tmp_path / "out"
    select(run, tokenizer, out)
    with pytest.raises(ValueError, match="begun with seed 3, which is now 4; choose"):
        select(SelectionRun(prepared, SPAN, LENGTH, "impactful", table, 4), tokenizer, out)
    Path(table).write_text(ImpactfulTokens.of(tokenizer, [5]).to_json())
    with pytest.raises(ValueError, match="begun when input 'impactful_tokens' was another"):
        select(run, tokenizer, out)
    with pytest.raises(ValueError, match="was begun by lrk-data prepare"):
        select(run, tokenizer, prepared)
    with pytest.raises(
        ValueError, match="'positions' depends on the positions that training draws"
    ):
        SelectionRun(prepared, SPAN, LENGTH, "positions")
    with pytest.raises(ValueError, match="the selection's span is 20, below length 30"):
        select(SelectionRun(prepared, 20, LENGTH, "random"), tokenizer, tmp_path / "new")
    with pytest.raises(ValueError, match=r"data source '.*corpus' is not prepared"):
        select(SelectionRun(str(tmp_path / "corpus"), 40, 30, "first"), tokenizer, tmp_path / "b")

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lrk.data import Preparation, prepare
from lrk.data.assemble import Assembly, Verification, assemble
from lrk.data.assemble.audit import read_verdicts
from lrk.data.assemble.parts import Layout
from lrk.data.command import main
from lrk.recipe.prepared import open_prepared
from studies.tiny import SHAPE, prose, train_tokenizer

LENGTH, SHORT, STRIDE = 120, 20, 10


@pytest.fixture
def prepared(tokenizer, tmp_path) -> str:
    lines = [json.dumps({"text": prose(3 + number % 9, number)}) + "\n" for number in range(30)]
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    prepare(Preparation([str(tmp_path / "texts.jsonl")]), tokenizer, tmp_path / "prepared")
    return str(tmp_path / "prepared")


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory) -> Path:
    """Random weights, large ones, so that losses depend on what came before."""
    torch.manual_seed(0)
    shape = {**SHAPE, "max_position_embeddings": LENGTH, "initializer_range": 0.3}
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(min_gain: float, model: Path | str = "stub") -> Verification:
    return Verification(str(model), None, "float32", min_gain, SHORT, STRIDE)


def stub(input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """A token gains its id, as far as it is odd; the first has no loss."""
    short = torch.full((len(input_ids),), 5.0)
    short[0] = math.nan
    return short, short - torch.where(input_ids % 2 == 1, input_ids, -3).float()


@pytest.mark.parametrize("method", ["neighbours", "negatives"])
def test_what_gains_enough_is_kept(prepared, tokenizer, tmp_path, method):
    options = {"chunk_tokens": 16} if method == "negatives" else {}

    def run(min_gain: float, folder: str):
        assembly = Assembly([prepared], method, LENGTH, verification=settings(min_gain), **options)
        manifest = assemble(assembly, tokenizer, tmp_path / folder, losses=stub)
        assert manifest is not None
        rows = open_prepared([str(tmp_path / folder)], tokenizer)["input_ids"][:]
        return (
            dict(manifest.summary or {}),
            rows,
            read_verdicts(tmp_path / folder / "documents-00000.arrow"),
        )

    summary, rows, verdicts = run(-1e9, "all")
    assert summary["documents"] == summary["assembled"] == len(rows) > 5
    layout = Layout.of(tokenizer)
    for ids, verdict in zip(rows, verdicts, strict=True):
        scored = []
        for number, (part, place) in enumerate(
            zip(verdict.parts, layout.places(verdict.parts), strict=True)
        ):
            is_own = part.document == verdict.parts[0].document
            if number and (method == "neighbours" or is_own):
                scored += range(place.start, place.stop)
        far = np.array(ids)[[place for place in scored if place >= SHORT + STRIDE]]
        assert verdict.kept
        assert verdict.gain == pytest.approx(np.where(far % 2 == 1, far, -3).mean())
    gains = [verdict.gain for verdict in verdicts]
    middle = sorted(gains)[len(gains) // 2]
    summary, kept, verdicts = run(middle, "half")
    assert kept == [row for row, gain in zip(rows, gains, strict=True) if gain >= middle]
    assert [verdict.gain for verdict in verdicts] == gains, "of those left out too"
    assert [verdict.kept for verdict in verdicts] == [gain >= middle for gain in gains]
    assert (summary["documents"], summary["assembled"]) == (len(kept), len(rows))
    assert 0 < len(kept) < len(rows)


def test_none_is_kept(prepared, tokenizer, tmp_path):
    assembly = Assembly([prepared], "neighbours", LENGTH, verification=settings(1e6))
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"none of \d+ samples gains min_gain 1e\+06 nats a to"
        ):
            assemble(assembly, tokenizer, tmp_path / "out", losses=stub)


def test_a_shard_without_a_sample(prepared, tokenizer, tmp_path):
    calls = 0

    def losses(input_ids: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return torch.ones(len(input_ids)), torch.full((len(input_ids),), 2.0 if calls < 3 else 0.0)

    assembly = Assembly(
        [prepared], "neighbours", LENGTH, shard_tokens=LENGTH, verification=settings(0.5)
    )
    manifest = assemble(assembly, tokenizer, tmp_path / "out", losses=losses)
    assert manifest is not None
    assert [shard.documents for shard in manifest.shards or []][:4] == [0, 0, 1, 1]
    assert len(open_prepared([str(tmp_path / "out")], tokenizer)) == calls - 2


def test_a_gain_that_is_not_finite(prepared, tokenizer, tmp_path):
    def losses(input_ids: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full((len(input_ids),), math.inf), torch.zeros(len(input_ids))

    assembly = Assembly([prepared], "neighbours", LENGTH, verification=settings(0))
    with pytest.raises(ValueError, match="verify_model 'stub' gains inf, which is not finite"):
        assemble(assembly, tokenizer, tmp_path / "out", losses=losses)


def test_a_model_by_the_command(prepared, model, tokenizer, tmp_path, capsys):
    """Its gains are those of stock logits in float64, a context at a time."""
    words = ["assemble", "--data", prepared, "--tokenizer", tokenizer.name_or_path]
    words += ["--method", "neighbours", "--target_length", str(LENGTH), "--samples", "4"]
    words += ["--verify_model", str(model), "--verify_dtype", "float32", "--min_gain", "-9"]
    words += ["--short_context", str(SHORT), "--short_stride", str(STRIDE), "--device", "cpu"]
    out = tmp_path / "out"
    for _ in range(2):  # the second time it is there
        assert main([*words, "--output_dir", str(out)]) == 0
        printed = capsys.readouterr().out
        assert f"{out}: 4 samples of 120 tokens, 480 in all, 1 shards" in printed
        assert re.search(r"[\d.]+ parts a sample, of \d+ of 30 documents; 0 that equal", printed)
        assert re.search(
            r"verified: 4 of 4 kept \(100.0%\); they gain -?0?.\d+ nats a token", printed
        )
    exact = LlamaForCausalLM.from_pretrained(model, dtype=torch.float64)

    def loss(ids: Tensor, start: int, place: int) -> float:
        with torch.no_grad():
            logits = exact(ids[None, start:place]).logits[0, -1]
        return -logits.log_softmax(-1)[ids[place]].item()

    rows = open_prepared([str(out)], tokenizer)["input_ids"][:]
    verdicts = read_verdicts(out / "documents-00000.arrow")
    layout = Layout.of(tokenizer)
    for row, verdict in list(zip(rows, verdicts, strict=True))[:2]:
        ids = torch.tensor(row)
        gains = [
            loss(ids, (place - SHORT) // STRIDE * STRIDE, place) - loss(ids, 0, place)
            for part in layout.places(verdict.parts)[1:]
            for place in range(max(part.start, SHORT + STRIDE), part.stop)
        ]
        assert verdict.gain == pytest.approx(np.mean(gains), abs=1e-4)
    assert len({verdict.gain for verdict in verdicts}) == 4
    assert abs(verdicts[0].gain or 0) > 1e-3
    with pytest.raises(AssertionError):
        assert main([*words, "--output_dir", str(out), "--min_gain", "-8"]) == 0
    assert "was begun with min_gain -9.0, which is now -8.0" in capsys.readouterr().err


def test_other_weights_are_another_folder(prepared, model, tokenizer, tmp_path):
    assembly = Assembly(
        [prepared], "neighbours", LENGTH, samples=1, verification=settings(-9, model)
    )
    assemble(assembly, tokenizer, tmp_path / "out", device="cpu")
    (model / "note.txt").write_text("trained on")
    with pytest.raises(ValueError, match="was begun when input 'verify_model' was another"):
        assemble(assembly, tokenizer, tmp_path / "out", device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_length": LENGTH + 1},
            "has a window of 120 tokens, shorter than target_length 121",
        ),
        (
            {"target_length": 30},
            "with verify_model it must be more than short_context + short_stri",
        ),
        ({"verification": {"model": ""}}, "verify_model is empty; it must name a folder"),
        ({"verification": {"model": "./none"}}, "verify_model './none' does not exist"),
        ({"verification": {"min_gain": math.nan}}, "min_gain is nan; it must be finite"),
        ({"verification": {"short_stride": 0}}, "short_stride is 0; it must be at least 1"),
        ({"verification": {"dtype": "float23"}}, "verify_dtype 'float23' is unknown; it must be"),
        ({"device": "abacus"}, "device 'abacus' is unknown to torch"),
    ],
)
def test_what_cannot_verify(prepared, model, tokenizer, tmp_path, options, message):
    given = {**vars(settings(0, model)), **options.pop("verification", {})}
    device = options.pop("device", "cpu")
    with pytest.raises(ValueError, match=re.escape(message)):
        assemble(
            Assembly(
                [prepared],
                "neighbours",
                **{"target_length": LENGTH, **options},
                verification=Verification(**given),
            ),
            tokenizer,
            tmp_path / "out",
            device=device,
        )
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_tokenizer(prepared, model, tokenizer, tmp_path):
    other = train_tokenizer(["zebra crossing " * 40], 300)
    other.save_pretrained(tmp_path / "model")
    for path in model.iterdir():
        if "token" not in path.name:
            (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    assembly = Assembly(
        [prepared], "neighbours", LENGTH, verification=settings(0, tmp_path / "model")
    )
    with pytest.raises(ValueError, match="has another tokenizer than tokenizer"):
        assemble(assembly, tokenizer, tmp_path / "out", device="cpu")

"""Weighted losses of the trainer against their definitions, in float64, token by token."""

import copy
from itertools import pairwise
from pathlib import Path

import datasets
import pytest
import torch
from torch.nn import functional

import lrk
from lrk.eval.losses import windows
from lrk.recipe.impactful import ImpactfulTokens
from lrk.train import LrkTrainer, LrkTrainingArguments, longce, train
from lrk.train.longce import longce_weight, short_contexts, short_losses
from lrk.train.session import set_up
from lrk.train.telemetry import read_metrics
from studies.ranks import fsdp_on_cpu, run_ranks

SHORT, STRIDE = 24, 8
LONGCE = {"token_loss": "longce", "longce_short_context": SHORT, "longce_short_stride": STRIDE}


def test_short_contexts_of_contiguous_positions_are_those_of_longppl():
    positions = torch.arange(23)
    found = list(short_contexts(positions, torch.tensor([0, 23]), 6, 2))
    assert found == list(windows(23, 8, 2))[1:]


def test_short_contexts_are_counted_in_positions_document_by_document():
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randperm(200, generator=generator)[:n].sort().values for n in (40, 3, 25)]
    ends = torch.tensor([0, 40, 43, 68])
    scored = {}
    for start, first, stop in short_contexts(torch.cat(documents), ends, SHORT, STRIDE):
        scored |= dict.fromkeys(range(first, stop), start)
    for (begin, end), positions in zip(pairwise(ends.tolist()), documents, strict=True):
        places = (positions - positions[0]).tolist()
        for token, place in zip(range(begin, end), places, strict=True):
            opens = (place - SHORT) // STRIDE * STRIDE
            context = [begin + i for i, other in enumerate(places) if opens <= other < place]
            if opens <= 0 or not context:
                assert token not in scored
            else:
                assert scored[token] == context[0]


@pytest.fixture
def weighted(arguments, options) -> LrkTrainer:
    """A trainer of LongCE on samples whose positions skip, with a model of random weights."""
    trainer = set_up(arguments(**LONGCE, contiguous_share=0.0))
    torch.manual_seed(0)
    for parameter in trainer.model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return trainer


def batch_of(trainer: LrkTrainer, indices) -> dict[str, torch.Tensor]:
    batch = trainer.data_collator([trainer.train_dataset[index] for index in indices])
    return trainer._prepare_inputs(batch)


def test_short_losses_have_the_temperature_of_the_loss(weighted):
    model, batch = weighted.model, batch_of(weighted, [0])
    cold = short_losses(model, batch, SHORT, STRIDE)
    warm = short_losses(model, {**batch, "attention_temperature": 3.0}, SHORT, STRIDE)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight /= 3
    expected = short_losses(model, batch, SHORT, STRIDE)
    assert not torch.allclose(warm, cold, equal_nan=True)
    torch.testing.assert_close(warm, expected, equal_nan=True)


def test_short_losses_of_an_adapted_head(arguments):
    """An adapter on lm_head, which its weight alone does not show."""
    trainer = set_up(arguments(**LONGCE, lora_rank=2, lora_targets=["lm_head"]))
    model, batch = trainer.model, batch_of(trainer, [0])
    torch.manual_seed(0)
    torch.nn.init.normal_(model.get_base_model().lm_head.lora_B["default"].weight)
    losses = short_losses(model.get_base_model(), batch, SHORT, STRIDE)
    with model.disable_adapter():
        without = short_losses(model.get_base_model(), batch, SHORT, STRIDE)
    merged = short_losses(model.merge_and_unload(), batch, SHORT, STRIDE)
    torch.testing.assert_close(losses, merged, equal_nan=True)
    assert not torch.allclose(losses, without, equal_nan=True)


def direct_losses(exact, tokens, positions):
    """(S,) float64 losses of one document by stock transformers with all its logits.

    The mask of ones keeps it from taking skips for documents.
    """
    logits = exact(
        tokens[None], position_ids=positions[None], attention_mask=torch.ones_like(tokens)[None]
    ).logits[0]
    losses = functional.cross_entropy(logits[:-1], tokens[1:], reduction="none")
    return functional.pad(losses, (1, 0))


def documents_of(batch):
    tokens, positions = batch["input_ids"].flatten(), batch["position_ids"].flatten()
    for begin, end in pairwise(batch["cu_seq_lens_q"].tolist()):
        yield begin, tokens[begin:end], positions[begin:end]


def in_float64(trainer):
    exact = lrk.unpatch(copy.deepcopy(trainer.model)).double()
    exact.set_attn_implementation("eager")
    return exact


def test_longce_is_its_definition(weighted):
    batch = batch_of(weighted, [0, len(weighted.train_dataset) - 1])
    assert len(batch["cu_seq_lens_q"]) > 3, "one of the samples is packed"
    exact = in_float64(weighted)
    total, weighs_more = 0.0, 0
    for _, tokens, positions in documents_of(batch):
        long = direct_losses(exact, tokens, positions)
        weight = torch.ones_like(long)
        for token, place in enumerate((positions - positions[0]).tolist()):
            start = (place - SHORT) // STRIDE * STRIDE + int(positions[0])
            seen = (positions >= start) & (positions < positions[token])
            if start > positions[0] and seen.any():
                seen[token] = True
                short = direct_losses(exact, tokens[seen], positions[seen])[-1].detach()
                weight[token] = (short - long[token].detach()).exp().clamp(max=5.0)
                weighs_more += int(weight[token] > 1)
        total = total + (weight * long).sum()
    assert weighs_more > 5
    truth = total / 77
    truth.backward()

    weighted.model.train()
    loss = weighted.compute_loss(weighted.model, batch, num_items_in_batch=torch.tensor(77))
    torch.testing.assert_close(loss.double(), truth.detach(), rtol=1e-4, atol=0)
    loss.backward()
    for ours, direct in zip(weighted.model.parameters(), exact.parameters(), strict=True):
        scale = direct.grad.abs().max().item()
        torch.testing.assert_close(ours.grad.double(), direct.grad, rtol=0, atol=2e-3 * scale)


def test_short_losses_skip_what_is_not_trained(weighted):
    batch = batch_of(weighted, [0])
    losses = short_losses(weighted.model, batch, SHORT, STRIDE)
    assert losses.shape == batch["labels"].shape
    chosen = ~losses.isnan()
    assert 5 < chosen.sum() < losses.numel() - 3
    labels = batch["labels"].clone()
    labels[chosen.cumsum(-1) % 2 == 0] = -100
    fewer = short_losses(weighted.model, {**batch, "labels": labels}, SHORT, STRIDE)
    assert torch.equal(fewer.isnan(), ~chosen | (labels == -100))
    assert torch.equal(fewer[~fewer.isnan()], losses[~fewer.isnan()])


def test_weights_are_capped_and_one_without_a_short_context():
    weight = longce_weight(torch.tensor([torch.nan, 3.0, 9.0, 1.0]), 5.0)
    found = weight(torch.tensor([2.0, 2.0, 2.0, 2.0]))
    torch.testing.assert_close(found, torch.tensor([1.0, torch.e, 5.0, 1 / torch.e]))


@pytest.fixture
def table(tokenizer, tmp_path):
    """Every fifth token is impactful."""
    path = tmp_path / "impactful.json"
    path.write_text(ImpactfulTokens.of(tokenizer, range(0, len(tokenizer), 5)).to_json())
    return str(path)


def test_impactful_weights_have_mean_one_over_the_step(arguments, table):
    trainer = set_up(
        arguments(
            token_loss="impactful",
            impactful_tokens=table,
            impactful_weight=3.0,
            gradient_accumulation_steps=2,
        )
    )
    last = len(trainer.train_dataset) - 1
    batches = [trainer.data_collator([trainer.train_dataset[index]]) for index in (0, last)]
    batches, items = trainer.get_batch_samples(iter(batches), 2, torch.device("cpu"))
    exact = in_float64(trainer)
    numerator = denominator = 0.0
    for batch in batches:
        kept = batch["labels"] != -100
        kept[:, 0] = False
        for begin, tokens, positions in documents_of(batch):
            losses = direct_losses(exact, tokens, positions)
            weight = torch.tensor([3.0 if token % 5 == 0 else 1.0 for token in tokens.tolist()])
            chosen = kept.flatten()[begin : begin + len(tokens)]
            numerator = numerator + (weight * losses)[chosen].sum()
            denominator = denominator + weight[chosen].sum()
    trainer.model.train()
    found = sum(
        trainer.compute_loss(
            trainer.model, trainer._prepare_inputs(batch), num_items_in_batch=items
        )
        for batch in batches
    )
    torch.testing.assert_close(found.double(), numerator / denominator, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["longce", "impactful"])
def test_accumulated_steps_equal_one_large_batch(arguments, table, kind, tmp_path):
    """The number of labels differs between the two micro-batches."""
    given = LONGCE if kind == "longce" else {"token_loss": kind, "impactful_tokens": table}
    found = []
    for accumulation in (1, 2):
        trainer = train(
            arguments(
                **given,
                max_steps=2,
                per_device_train_batch_size=2 // accumulation,
                gradient_accumulation_steps=accumulation,
                output_dir=str(tmp_path / str(accumulation)),
                optim="sgd",
                learning_rate=0.1,
            )
        )
        found.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_a_run_with_lora_and_checkpointing_and_plain_evaluation(arguments, corpus):
    both = [
        train(
            arguments(
                **given,
                output_dir=f"{arguments().output_dir}-{name}",
                eval_data=[str(corpus / "held_out")],
                lora_rank=2,
                gradient_checkpointing=True,
                learning_rate=0.0,
            )
        )
        for name, given in (("plain", {}), ("longce", LONGCE))
    ]
    plain, longce = (
        {
            name: value
            for row in read_metrics(Path(trainer.args.output_dir) / "metrics.jsonl")
            for name, value in row.items()
        }
        for trainer in both
    )
    assert plain["loss"] != longce["loss"]
    assert plain["eval_256_loss"] == longce["eval_256_loss"]


def packs_and_history(options, cache):
    """Packs of short contexts of each micro-batch, losses and gradient norms of each step."""
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()
    packs = []

    def counted(contexts, tokens, found=longce._packs):
        packs.append(list(found(contexts, tokens)))
        return packs[-1]

    with pytest.MonkeyPatch.context() as patched, fsdp_on_cpu():
        patched.setattr(longce, "_packs", counted)
        history = train(LrkTrainingArguments(**options)).state.log_history
    rows = [[row["loss"], row["grad_norm"]] for row in history if "grad_norm" in row]
    return [len(each) for each in packs], torch.tensor(rows)


def test_sharded_weights_and_different_numbers_of_short_contexts(options, tmp_path):
    given = {**options, **LONGCE, "max_steps": 4}
    cache = datasets.config.HF_DATASETS_CACHE
    _, alone = packs_and_history({**given, "per_device_train_batch_size": 2}, cache)
    sharded = {**given, "fsdp": True, "output_dir": str(tmp_path / "sharded")}
    (first, history), (second, again) = run_ranks(packs_and_history, 2, sharded, cache)
    assert first != second
    for found in (history, again):
        torch.testing.assert_close(found, alone, rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"token_loss": "long_ce"}, "token_loss 'long_ce' is unknown; .* did you mean"),
        (
            {**LONGCE, "kernels": {"cross_entropy": False}},
            "token_loss is 'longce' with kernels.cross_entropy false",
        ),
        (
            {**LONGCE, "kernels": {"attention": False}, "position_method": "contiguous",
             "target_length": 32},
            "token_loss is 'longce' with kernels.attention false",
        ),
        (
            {**LONGCE, "kernels": {"attention": "sdpa"}},
            "token_loss is 'longce' with kernels.attention 'sdpa', which knows no documents",
        ),
        ({"token_loss": "longce"}, "longce_short_context 4096 .* less than target_length 256"),
        ({**LONGCE, "longce_short_stride": 0}, "longce_short_stride is 0"),
        ({**LONGCE, "longce_max_weight": 0.0}, "longce_max_weight is 0.0"),
        ({"token_loss": "impactful"}, "without impactful_tokens"),
        (
            {"token_loss": "impactful", "impactful_tokens": "x", "impactful_weight": -1.0},
            "impactful_weight is -1.0",
        ),
    ],
)  # fmt: skip
def test_what_no_run_can_have(arguments, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        arguments(**given)


def test_a_table_of_another_tokenizer_is_refused(arguments, table, tmp_path):
    text = (tmp_path / "impactful.json").read_text().replace('"tokenizer": "', '"tokenizer": "0')
    (tmp_path / "impactful.json").write_text(text)
    with pytest.raises(ValueError, match="of another tokenizer"):
        set_up(arguments(token_loss="impactful", impactful_tokens=table))

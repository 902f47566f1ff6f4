"""Rows whose tokens lie on two processes, against one process that has them all, in float64."""

import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

import lrk
from lrk.hf import sequence_split
from lrk.hf.attention import lrk_attention
from lrk.hf.canary import tiny_config, tiny_model
from lrk.hf.sequence_split import SequenceSplit
from lrk.kernels.attention import attention_reference, attention_triton
from lrk.memory import checkpointing
from lrk.testing import (
    GRADIENT_FACTOR,
    OUTPUT_FACTOR,
    assert_as_exact_as,
    poisoned_memory,
)
from studies.ranks import run_ranks

VOCABULARY, LENGTH, SIZE = 61, 48, 2
EXACT = 1e-12
# Ends in two rows, of which pieces end at 12, 24, 36 and 48.
DOCUMENTS = {
    "a document a row": [48, 96],
    "across pieces": [5, 43, 48, 65, 95, 96],
    "ending where pieces do": [12, 24, 48, 60, 84, 96],
    "some of them empty": [0, 24, 24, 30, 48, 48, 96, 96],
}
ACROSS = DOCUMENTS["across pieces"]
BALANCED = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
CASES: dict[str, tuple[str, dict[str, Any], list[int]]] = {
    **{f"documents {name}": ("llama", {}, ends) for name, ends in DOCUMENTS.items()},
    **{
        f"windows and documents {name}": ("mistral", {"sliding_window": 40}, ends)
        for name, ends in DOCUMENTS.items()
    },
    "biases": ("qwen2", {}, ACROSS),
    "sinks": ("gpt_oss", {}, ACROSS),
    "softcaps": ("gemma2", {}, ACROSS),
    "interleaved rotation": ("glm4", {}, ACROSS),
    "queries scaled by position": ("ministral3", {}, ACROSS),
    "balance of experts": ("mixtral", BALANCED, ACROSS),
}


def batch_of(ends: list[int], largest_step: int = 5) -> dict[str, Any]:
    """Two rows of documents with the given ends, in positions that skip unless the step is 1."""
    generator = torch.Generator().manual_seed(0)
    cu_seq_lens = torch.tensor([0, *ends]).int()
    lengths = cu_seq_lens.diff().tolist()
    tokens = torch.randint(VOCABULARY, (2 * LENGTH,), generator=generator)
    steps = torch.randint(1, largest_step + 1, (2 * LENGTH,), generator=generator)
    positions = torch.cat([document.cumsum(0) - 1 for document in steps.split(lengths)])
    labels = tokens.masked_fill(torch.rand(2 * LENGTH, generator=generator) < 0.2, -100)
    labels[cu_seq_lens[:-1].clamp(max=2 * LENGTH - 1).long()] = -100
    rows = {"input_ids": tokens, "position_ids": positions, "labels": labels}
    return {
        **{name: x.view(2, LENGTH) for name, x in rows.items()},
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), cu_seq_lens),
        **dict.fromkeys(("max_length_q", "max_length_k"), max(lengths)),
    }


def model_of(model_type: str, changes: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = tiny_model(tiny_config(model_type, **changes)).double().train()
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # others know no float64
    return model


def in_group(function: Callable[..., Any], *arguments: Any) -> Any:
    dist.init_process_group("gloo")
    return function(*arguments)


def errors(
    model: PreTrainedModel, batch: dict[str, Any], as_whole: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """Of the loss, and the largest of a gradient beside its largest entry.

    Args:
        as_whole: called before the model is given the whole batch; parts go first.
    """
    model.zero_grad()
    split = lrk.split_batch(batch, dist.group.WORLD)
    own = model(**split).loss
    own.backward()
    loss = own.detach().clone()
    dist.all_reduce(loss)
    assert not torch.allclose(own, loss)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = [parameter.grad.clone() for parameter in trained]
    model.zero_grad()
    as_whole()
    items = split["num_items_in_batch"]
    truth = model(**{"num_items_in_batch": items, "use_cache": False} | batch).loss
    truth.backward()
    worst = 0.0
    for parameter, gradient in zip(trained, found, strict=True):
        dist.all_reduce(gradient)
        difference = (parameter.grad - gradient).abs().max() / parameter.grad.abs().max()
        worst = max(worst, difference.item())
    return ((truth - loss).abs() / truth).item(), worst


def errors_of_models() -> dict[str, tuple[float, float]]:
    found = {}
    for name, (model_type, changes, ends) in CASES.items():
        model = lrk.patch(model_of(model_type, changes))
        if model_type == "gemma2":  # transformers sums the gradients of its norms in float32
            for parameter in (each.weight for each in norms_of(model)):
                parameter.requires_grad_(False)
        found[name] = errors(model, batch_of(ends))
    return found


def norms_of(model: PreTrainedModel) -> list[Any]:
    return [module for name, module in model.named_modules() if name.endswith("norm")]


@pytest.fixture(scope="module")
def of_models() -> list[dict[str, tuple[float, float]]]:
    return run_ranks(in_group, SIZE, errors_of_models)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_the_whole(of_models, case):
    for found in of_models:
        assert max(found[case]) < EXACT


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}


def errors_of_arguments() -> dict[str, tuple[float, float]]:
    model, batch = lrk.patch(model_of("llama", {})), batch_of(ACROSS)
    weight = torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(1)).double()
    # 32 positions, so that the frequencies of a row are not those of what rank 1 has of it.
    by_length = model_of("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 32})
    return {
        "weights": errors(model, {**batch, "token_weight": weight}),
        "weights by losses": errors(model, {**batch, "token_weight": torch.sigmoid}),
        "temperature": errors(model, {**batch, "attention_temperature": 2.0}),
        "num_items_in_batch": errors(model, {**batch, "num_items_in_batch": 77}),
        "frequencies by length": errors(lrk.patch(by_length), batch_of([48, 96], 1)),
    }


@pytest.fixture(scope="module")
def of_arguments() -> list[dict[str, tuple[float, float]]]:
    return run_ranks(in_group, SIZE, errors_of_arguments)


@pytest.mark.parametrize(
    "case",
    ["weights", "weights by losses", "temperature", "num_items_in_batch", "frequencies by length"],
)
def test_arguments_mean_what_they_do_for_the_whole(of_arguments, case):
    for found in of_arguments:
        assert max(found[case]) < EXACT


def errors_of_checkpointing(keep_attention: bool) -> tuple[list[str], tuple[float, float]]:
    """The collectives of a step, in their order, and its errors."""
    model = lrk.patch(model_of("llama", {}))
    checkpointing.enable(model, keep_attention)
    calls = []
    for name in ("_all_gather", "_reduce_scatter"):
        collective = getattr(sequence_split, name)

        def counted(*arguments: Any, name=name, collective=collective, **options: Any) -> None:
            calls.append(name)
            collective(*arguments, **options)

        setattr(sequence_split, name, counted)
    return calls, errors(model, batch_of(ACROSS), as_whole=calls.copy)


@pytest.mark.parametrize("keep_attention", [False, True])
def test_checkpointing_gathers_again_and_keeps_nothing(keep_attention):
    """Two layers: each gathers in the forward pass and once more before its backward pass."""
    step = ["_all_gather", "_all_gather", *2 * ["_all_gather", "_reduce_scatter"]]
    for calls, found in run_ranks(in_group, SIZE, errors_of_checkpointing, keep_attention):
        assert calls == step
        assert max(found) < EXACT


@pytest.fixture
def alone() -> Iterator[dist.ProcessGroup]:
    """A group of this process, which has both pieces of its rows."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize(("head_dim", "window"), [(64, None), (128, 40)])
def test_pieces_by_the_triton_kernels(alone, monkeypatch, head_dim, window):
    batch = batch_of(ACROSS)
    split = SequenceSplit(alone, batch["position_ids"], batch["cu_seq_lens_q"])
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, heads, LENGTH, head_dim, generator=generator) for heads in (2, 1, 1)]
    cotangent = torch.randn(2, LENGTH, 2, head_dim, generator=generator)

    def gradients(attend: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
        output = attend(*leaves)
        output.backward(cotangent.to(dtype))
        return output.detach(), *[x.grad for x in leaves]

    def in_pieces(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        module = SimpleNamespace(is_causal=True)
        arguments = {"sliding_window": window, "positions_are_checked": True}
        return lrk_attention(module, q, k, v, None, sequence_split=split, **arguments)[0]

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_reference(
            q,
            k,
            v,
            cu_seqlens=batch["cu_seq_lens_q"],
            window=window,
            window_position_ids=None if window is None else batch["position_ids"],
        ).transpose(1, 2)

    monkeypatch.setattr("lrk.hf.attention.attention", attention_triton)
    with poisoned_memory():
        ours = gradients(in_pieces, torch.float32)
    plain, truth = gradients(whole, torch.float32), gradients(whole, torch.float64)
    factors = {"output": OUTPUT_FACTOR, **dict.fromkeys(["dq", "dk", "dv"], GRADIENT_FACTOR)}
    for result, of_plain, exact, (name, factor) in zip(
        ours, plain, truth, factors.items(), strict=True
    ):
        assert_as_exact_as(result, of_plain, exact, factor, name)


def test_keys_are_gathered_in_the_dtype_of_autocast(alone):
    batch = batch_of(ACROSS)
    split = SequenceSplit(alone, batch["position_ids"], batch["cu_seq_lens_q"])
    key = torch.randn(2, 2, LENGTH, 16)
    with torch.autocast("cpu", torch.bfloat16):
        pairs = split.gathered(key, key.bfloat16())
    assert [x.dtype for pair in pairs for x in pair] == 4 * [torch.bfloat16]
    assert torch.equal(pairs[1][0], key.bfloat16())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"attention_mask": torch.ones(2, LENGTH)}, "attention_mask is a tensor of shape"),
        ({"labels": None}, "batch has no labels"),
        ({"cu_seq_lens_q": None}, "batch has no cu_seq_lens_q"),
        ({"position_ids": torch.arange(LENGTH)[None]}, "position_ids has shape (1, 48)"),
    ],
)
def test_batches_that_cannot_be_split(alone, given, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        lrk.split_batch(batch_of(ACROSS) | given, alone)


def test_rows_that_do_not_divide(alone):
    batch = batch_of(ACROSS)
    odd = {name: batch[name][:, 1:] for name in ("input_ids", "position_ids", "labels")}
    with pytest.raises(ValueError, match="rows have 47 tokens; over 1 processes they must be"):
        lrk.split_batch(batch | odd, alone)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"attention_mask": torch.ones(2, LENGTH)}, "attention_mask is given with"),
        ({"use_cache": True}, "use_cache is given with"),
        ({"cu_seq_lens_q": torch.tensor([0, 48, 96])}, "cu_seq_lens_q is given with"),
        ({"position_ids": None}, "position_ids is missing"),
        ({"input_ids": torch.ones(2, 7).long()}, "input_ids is of shape (2, 7)"),
    ],
)
def test_what_a_model_refuses_beside_a_split(alone, llama, given, sentence):
    model, parts = lrk.patch(llama), lrk.split_batch(batch_of(ACROSS), alone)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        model(**parts | given)


def test_documents_are_checked_in_whole_rows(alone, llama):
    batch = batch_of([48, 96])
    batch["position_ids"][1, 30] = 0
    with pytest.raises(ValueError, match="position_ids start again inside a row"):
        lrk.patch(llama)(**lrk.split_batch(batch, alone))


@pytest.mark.parametrize("attention", [False, "sdpa"])
def test_other_attentions_are_refused(alone, llama, attention):
    parts = lrk.split_batch(batch_of([48, 96], 1), alone)
    with pytest.raises(ValueError, match="sequence_split is given with the attention"):
        lrk.patch(llama, attention=attention)(**parts)


def test_a_model_that_is_not_patched_is_refused(alone, llama):
    llama.set_attn_implementation("lrk")
    with pytest.raises(ValueError, match="not patched"):
        llama(**lrk.split_batch(batch_of([48, 96]), alone))

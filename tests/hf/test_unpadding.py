"""Padding between the tokens of a row, and behind them while no gradients are computed."""

import copy

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

import lrk
from lrk.decode import self_extend
from lrk.hf.cache_name import cache_of, named_cache
from lrk.hf.document_boundaries import document_boundaries
from lrk.hf.unpadding import Unpadding, is_marks, marks
from lrk.kernels.attention import attention, attention_triton

ROWS, LENGTH, VOCABULARY = 3, 18, 61
TOKENS = torch.randint(2, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))


def _mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[int(each) for each in row] for row in rows])


MASKS = {
    "right": _mask("1" * 18, "1" * 13 + "0" * 5, "1" * 17 + "0"),
    "holes": _mask("1" * 5 + "000" + "1" * 10, "0011" + "01" * 7, "1" * 18),
    "both": _mask("1" * 18, "1100011111111" + "0" * 5, "0" * 7 + "1" * 6 + "0" * 5),
}
# What transformers' own tests pad by; a window of few tokens would see nothing there.
TRIANGLE = torch.ones(ROWS, LENGTH, dtype=torch.int64).tril()


def pair(stock):
    """The stock model, with eager attention, and a patched copy."""
    ours = lrk.patch(copy.deepcopy(stock))
    stock.set_attn_implementation("eager")
    return stock, ours


def generate(model, mask, **options):
    settings = {"max_new_tokens": 6, "do_sample": False, "disable_compile": True}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    torch.manual_seed(0)
    return model.generate(TOKENS * mask, attention_mask=mask, **settings | options)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(
    "options",
    [{}, {"cache_implementation": "static"}, {"use_cache": False}, {"num_beams": 3}],
    ids=["dynamic cache", "static cache", "no cache", "beam search"],
)
@pytest.mark.support("padding on the right or between tokens, generate")
def test_same_tokens_as_stock(stock, mask, options):
    stock, ours = pair(stock.eval())
    expected, generated = (generate(model, mask, **options) for model in (stock, ours))
    assert torch.equal(generated.sequences, expected.sequences)
    for one, other in zip(generated.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["holes", "both"])
@pytest.mark.support("padding between tokens")
def test_same_loss_and_gradients_as_stock(stock, name):
    mask = MASKS[name]
    behind_padding = mask.diff(dim=1, prepend=mask[:, :1] * 0) == 1
    labels = TOKENS.where(mask.bool() & ~behind_padding, -100)
    losses, gradients = [], []
    for model in pair(stock):
        loss = model(TOKENS, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: each.grad for name, each in model.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0])
    for parameter, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, gradients[0][parameter], rtol=1e-3, atol=2e-6)


@torch.no_grad()
def test_without_the_patch(llama):
    mask = MASKS["holes"]
    stock, ours = llama.eval(), copy.deepcopy(llama).eval()
    ours.set_attn_implementation("lrk")
    expected, logits = (model(TOKENS, attention_mask=mask).logits for model in (stock, ours))
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()])


@torch.no_grad()
def test_chunks_of_a_row_with_holes(llama):
    mask, ours = MASKS["holes"], lrk.patch(llama).eval()
    whole = ours(TOKENS, attention_mask=mask).logits
    first = ours(TOKENS[:, :7], attention_mask=mask[:, :7], use_cache=True)
    positions = torch.arange(7, LENGTH)[None]
    then = ours(
        TOKENS[:, 7:],
        attention_mask=mask,
        position_ids=positions,
        **named_cache(cache_of(first)),
    )
    real = mask[:, 7:].bool()
    torch.testing.assert_close(then.logits[real], whole[:, 7:][real])


@torch.no_grad()
@pytest.mark.parametrize("window", [4, 5])
def test_a_chunk_of_padding_behind_a_window(shape, window):
    """A window counts the padding of the chunk before too."""
    torch.manual_seed(0)
    config = MistralConfig(**shape | {"num_hidden_layers": 1}, head_dim=16, sliding_window=window)
    logits = []
    for model in pair(MistralForCausalLM(config).eval()):
        first = model(TOKENS[:1, :4], attention_mask=_mask("1110"), use_cache=True)
        cache = named_cache(cache_of(first))
        then = model(TOKENS[:1, 4:6], attention_mask=_mask("111000"), **cache)
        logits.append(then.logits)
    torch.testing.assert_close(logits[1], logits[0])


def test_a_compiled_model_refuses(llama):
    ours = torch.compile(lrk.patch(llama).eval(), backend="eager", fullgraph=True)
    with pytest.raises(ValueError, match="zeros between the ones of row 0, which attention="):
        ours(TOKENS, attention_mask=MASKS["holes"], use_cache=False)


def test_packed_documents_beside_it_are_refused(llama):
    ends = torch.tensor([0, 9, 18, 36, 54], dtype=torch.int32)
    with pytest.raises(ValueError, match="attention_mask has padding and cu_seq_lens_q packs"):
        lrk.patch(llama)(
            TOKENS, attention_mask=MASKS["holes"], cu_seq_lens_q=ends, cu_seq_lens_k=ends
        )


@torch.no_grad()
@pytest.mark.parametrize("positions", [[0, 1, 7, 3, 0, 1, 2, 3], [0, 1, 1, 1, 2, 3, 4, 5]])
def test_any_positions_behind_a_hole(stock, positions):
    """As where `generate` goes on from the position of padding; documents are not meant."""
    stock, ours = pair(stock.eval())
    inputs = {"attention_mask": _mask("11001111"), "position_ids": torch.tensor([positions])}
    expected, logits = (model(TOKENS[:1, :8], **inputs).logits[0] for model in (stock, ours))
    real = inputs["attention_mask"][0].bool()
    torch.testing.assert_close(logits[real], expected[real])
    inputs["position_ids"][0, 6] = 0
    with pytest.raises(ValueError, match="position_ids start again inside a row"):
        ours(TOKENS[:1, :8], **inputs)


def test_gradients_keep_right_padding_in_documents():
    """Which compute nothing for it; it is moved only where its output may be asked for."""
    of = {"batch_size": ROWS, "q_length": LENGTH, "kv_length": LENGTH}
    mask = MASKS["right"].bool()
    assert not is_marks(document_boundaries(**of, attention_mask=mask))
    with torch.no_grad():
        assert is_marks(document_boundaries(**of, attention_mask=mask))
        assert not is_marks(document_boundaries(**of, attention_mask=mask.flip(1)))


def test_where_padding_inside_a_row_is_refused(llama):
    """Padding behind a text is taken there, with documents."""
    texts = {"attention_mask": MASKS["right"]}, {"attention_mask": MASKS["holes"]}
    model = lrk.patch(llama).eval()
    with torch.no_grad(), self_extend(model, 8, 4):
        model(TOKENS, **texts[0])
        with pytest.raises(ValueError, match="zeros between the ones of row 0, which attention="):
            model(TOKENS, **texts[1])
    of = {"batch_size": ROWS, "q_length": LENGTH, "kv_length": LENGTH, "unpads": False}
    with torch.no_grad():
        assert not is_marks(document_boundaries(**of, attention_mask=MASKS["right"].bool()))
        with pytest.raises(ValueError, match="zeros between the ones of row 0, which attention="):
            document_boundaries(**of, attention_mask=MASKS["holes"].bool())


@torch.no_grad()
def test_transformers_own_padding(llama):
    stock, ours = pair(llama.eval())
    expected, generated = (generate(model, TRIANGLE) for model in (stock, ours))
    assert torch.equal(generated.sequences, expected.sequences)


def test_the_order():
    real = _mask("110101", "000000").bool()
    order = Unpadding.of(marks(real, torch.arange(6) >= 2), 4)
    assert order.keys.tolist() == [[0, 1, 3, 5, 2, 4], [2, 3, 4, 5, 0, 1]]
    assert order.queries.tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]
    assert order.kv_lengths.tolist() == [4, 0]
    assert order.q_offset.tolist() == [2, 0]
    assert order.answered.tolist() == [[False, True, False, True], [True] * 4]
    # By places; and by positions, where they skip.
    assert order.rising(None).tolist() == [[0, 1, 3, 5, 6, 8], [0, 1, 2, 3, 4, 5]]
    positions = torch.tensor([[0, 1, 1, 2, 1, 50]])
    assert order.rising(positions)[0].tolist() == [0, 1, 3, 51, 52, 54]


def test_the_kernels_compute_the_same(shape, monkeypatch):
    """With a window, which counts by places in the kernels too, forward and backward."""
    torch.manual_seed(0)
    config = MistralConfig(**shape | {"num_hidden_layers": 1}, head_dim=16, sliding_window=7)
    model, found = lrk.patch(MistralForCausalLM(config)), []
    mask = MASKS["both"][1:2]
    labels = TOKENS[1:2].where(mask.bool(), -100)
    for attend in (attention, attention_triton):
        monkeypatch.setattr("lrk.hf.attention.attention", attend)
        model.zero_grad()
        loss = model(TOKENS[1:2], attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        found.append([loss.detach(), *(x.grad for x in model.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-6)

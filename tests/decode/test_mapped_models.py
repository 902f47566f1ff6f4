"""SelfExtend, STRING and DCA in a whole model: logits by the definition, and generation."""

import copy

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

import lrk
from lrk.decode import dca, self_extend, string
from lrk.decode.mapped import MappedAttention
from lrk.hf.cache_name import cache_of, named_cache
from lrk.hf.canary import tiny_config, tiny_model

LENGTH = 29


def self_extended(m: int, n: int) -> int:
    return m - n if m - n < 8 else m // 4 + 8 - 8 // 4 - n // 4


def shifted(m: int, n: int) -> int:
    return m - n if m - n <= 10 else m - n - 10 + 3


def chunked(m: int, n: int) -> int:
    if m // 6 == n // 6:
        return m % 6 - n % 6
    return (min(m % 6 + 6, 9) if m // 6 == n // 6 + 1 else 9) - n % 6


METHODS = {
    "self_extend": (lambda model: self_extend(model, window=8, group=4), self_extended),
    "string": (lambda model: string(model, shift=10, window=3), shifted),
    "dca": (lambda model: dca(model, chunk=6, length=10), chunked),
}
all_methods = pytest.mark.parametrize("method", METHODS)


def tokens(rows: int = 1, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(2, 61, (rows, length), generator=torch.Generator().manual_seed(1))


@all_methods
@torch.no_grad()
def test_logits_are_those_of_the_definition(model, directly, method):
    block, relative = METHODS[method]
    model.double()
    ordinary = model(tokens()).logits
    with block(model) as inside:
        assert inside is model
        logits = model(tokens()).logits
    # All in float64 but the norms of transformers, which round to float32.
    exact = directly.logits(model, tokens()[0], relative)
    torch.testing.assert_close(logits[0], exact, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits, ordinary)
    assert torch.equal(model(tokens()).logits, ordinary)


@all_methods
@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 5},
        {"num_beams": 3},
        # Some releases of transformers look ids up without one to stop at, and fail.
        {"prompt_lookup_num_tokens": 3, "eos_token_id": 1},
    ],
    ids=str,
)
def test_generation_with_a_cache_is_that_without(model, method, options):
    block, _ = METHODS[method]
    settings = {"max_new_tokens": 12, "do_sample": False, "disable_compile": True}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    beams = {
        name: value for name, value in options.items() if name in ("num_beams", "eos_token_id")
    }
    with block(model):
        cached = model.generate(tokens(), **settings, **options)
        plain = model.generate(tokens(), **settings, **beams, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    if "prompt_lookup_num_tokens" not in options:  # which gives the logits of guesses too
        for one, two in zip(cached.logits, plain.logits, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    ordinary = model.generate(tokens(), **settings, **beams)
    assert not torch.equal(cached.sequences, ordinary.sequences)


@all_methods
@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, method, side):
    block, _ = METHODS[method]
    lengths = (LENGTH, 17, 3)
    rows, mask = tokens(3), torch.zeros(3, LENGTH, dtype=torch.int64)
    for row, length in enumerate(lengths):
        rows[row, length:] = 0
        mask[row, :length] = 1
        if side == "left":
            rows[row], mask[row] = (x[row].roll(LENGTH - length) for x in (rows, mask))
    with block(model):
        logits = model(rows, attention_mask=mask).logits
        for row in range(3):
            real = mask[row].bool()
            alone = model(rows[row, real][None]).logits[0]
            torch.testing.assert_close(logits[row, real], alone, rtol=1e-4, atol=1e-4)
        if side == "left":
            settings = {"max_new_tokens": 8, "do_sample": False}
            together = model.generate(rows, attention_mask=mask, **settings)
            for row, length in enumerate(lengths):
                alone = model.generate(rows[row, LENGTH - length :][None], **settings)
                assert torch.equal(together[row, LENGTH - length :], alone[0])


@all_methods
def test_packed_documents_train_as_if_alone(model, method):
    block, _ = METHODS[method]
    lengths = (17, 1, 11)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    ends = torch.tensor([0, 17, 18, 29], dtype=torch.int32)
    model.train()
    with block(model):
        logits = model(
            tokens(),
            position_ids=positions,
            cu_seq_lens_q=ends,
            cu_seq_lens_k=ends,
            use_cache=False,
        ).logits
        logits.square().mean().backward()
        alone = [model(part, use_cache=False).logits for part in tokens().split(lengths, dim=1)]
    torch.testing.assert_close(logits, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-4)
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.cat(alone, dim=1).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_one_position_tensor_may_serve_many_steps(model):
    """Whoever decodes by hand may count positions up in place."""
    row = tokens()
    with self_extend(model, window=8, group=4):
        whole = model(row).logits
        position = torch.tensor([[19]])
        cache = cache_of(model(row[:, :20]))
        for i in range(20, LENGTH):
            position += 1
            step = model(row[:, i : i + 1], position_ids=position, **named_cache(cache))
            torch.testing.assert_close(step.logits[:, 0], whole[:, i], rtol=1e-4, atol=1e-4)


def test_the_block_leaves_the_model_as_it_was(model):
    classes = [type(module) for module in model.modules()]
    with pytest.raises(KeyError), string(model, shift=10, window=3):
        raise KeyError
    assert [type(module) for module in model.modules()] == classes
    assert not any("_lrk_decoding" in vars(module) for module in model.modules())
    with string(model, shift=10, window=3):
        copied = copy.deepcopy(model)
        lrk.unpatch(model)
    assert not any(isinstance(module, MappedAttention) for module in model.modules())
    assert any(isinstance(module, MappedAttention) for module in copied.modules())


def test_refusals(model):
    skipping = torch.cat([torch.arange(20), torch.arange(29, 29 + LENGTH - 20)])[None]
    with self_extend(model, window=8, group=4):
        with pytest.raises(ValueError, match=r"position_ids skip; the methods of lrk\.decode"):
            model(tokens(), position_ids=skipping)
        with pytest.raises(ValueError, match="in a block of the same kind already"):
            string(model, shift=10, window=3).__enter__()
    with pytest.raises(ValueError, match="window is 9; it must be a multiple of group 4"):
        self_extend(model, window=9, group=4).__enter__()
    with pytest.raises(ValueError, match="window is 128; it must be at most shift, 10"):
        string(model, shift=10).__enter__()
    for parts in ({"rope": False}, {"attention": False}, {"attention": "sdpa"}):
        lrk.patch(model, **parts)
        with pytest.raises(ValueError, match="that is not patched with lrk's RoPE"):
            dca(model, chunk=6, length=10).__enter__()
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 9}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    windowed = lrk.patch(MistralForCausalLM(MistralConfig(**shape, **heads, sliding_window=7)))
    with pytest.raises(ValueError, match="model has a sliding window of 7 tokens"):
        dca(windowed, chunk=6, length=10).__enter__()


@torch.no_grad()
def test_arguments_are_obeyed_or_refused(model):
    """As by the patched model's own attention."""
    row = tokens()
    ends = torch.tensor([0, 20, LENGTH], dtype=torch.int32)
    with self_extend(model, window=8, group=4):
        expected = model(row, use_cache=False).logits
        for allowed in ({"output_attentions": False}, {"is_causal": True}):
            assert torch.equal(model(row, use_cache=False, **allowed).logits, expected)
        packed = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "seq_idx": torch.zeros_like(row)}
        positions = torch.cat([torch.arange(20), torch.arange(LENGTH - 20)])[None]
        model(row, position_ids=positions, use_cache=False, **packed)
        for refused, sentence in (
            ({"is_causal": False}, "is_causal is False; a decoding method reads"),
            ({"attention_temperature": 2.0}, "attention_temperature reached the lrk attention"),
            ({"seq_idx": torch.zeros_like(row)}, "seq_idx packs documents; give their boundaries"),
        ):
            with pytest.raises(ValueError, match=sentence):
                model(row, use_cache=False, **refused)


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["granite", "mixtral"])
def test_other_types_whose_attention_is_llamas(model_type):
    torch.manual_seed(0)
    model = lrk.patch(tiny_model(tiny_config(model_type)).eval())
    tokens = torch.arange(2, 26)[None]
    expected = model(tokens).logits
    with self_extend(model, window=32, group=2):
        torch.testing.assert_close(model(tokens).logits, expected)


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("qwen3", r"Qwen3Attention\.forward of transformers \S+ reads q_norm, k_norm, which lrk"),
        ("olmo2", "reads q_norm"),
        ("phi3", "reads qkv_proj"),
        ("glm4", r"Glm4Attention turns dimension 2 j with 2 j \+ 1"),
    ],
)
def test_types_whose_attention_does_more_are_refused(model_type, why):
    model = lrk.patch(tiny_model(tiny_config(model_type)).eval())
    with pytest.raises(ValueError, match=why), self_extend(model, window=8, group=2):
        pass

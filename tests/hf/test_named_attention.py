"""Another's attention by name: it is handed lrk's documents, and computes what lrk computes.

FlashAttention is not here; transformers' integration of it is, and calls a stand-in.
"""

import copy
import sys
from functools import partial

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

import lrk
from lrk.hf import flash_attention
from lrk.hf.backends import BACKENDS, OURS
from lrk.hf.cache_name import cache_of, named_cache
from lrk.hf.canary import tiny_config, tiny_model
from tests.hf import stand_in_flash_attn

FLASH = tuple(flash_attention.BACKENDS)
INPUT_IDS = torch.arange(2, 26).view(2, 12)
SKIPPED = torch.tensor([[0, 1, 2, 3, 50, 51, 52, 53, 90, 91, 92, 93]])
BOUNDARIES = torch.tensor([0, 12, 18, 24], dtype=torch.int32)
TWO_ROWS = torch.tensor([0, 12, 24], dtype=torch.int32)
PACKED = {
    "position_ids": torch.cat([SKIPPED, SKIPPED[:, 3:9].repeat(1, 2)]),
    "cu_seq_lens_q": BOUNDARIES,
    "cu_seq_lens_k": BOUNDARIES,
}
EXPLICIT = {"position_ids": SKIPPED, "cu_seq_lens_q": TWO_ROWS, "cu_seq_lens_k": TWO_ROWS}
MASKS = {
    "left": torch.tensor([[0] * 5 + [1] * 7, [1] * 12]),
    "right": torch.tensor([[1] * 9 + [0] * 3, [1] * 12]),
}


@pytest.fixture
def installed(monkeypatch):
    """FlashAttention's stand-in, which takes float64 too, and what it is handed."""
    stand_in_flash_attn.install(monkeypatch, 2, 3, 4)
    monkeypatch.setattr(flash_attention, "DTYPES", (*flash_attention.DTYPES, torch.float64))
    return stand_in_flash_attn.CALLS


@pytest.fixture
def handed(monkeypatch):
    """What `scaled_dot_product_attention` is handed."""
    calls = []

    def recording(query, key, value, **options):
        calls.append(options)
        return scaled_dot_product_attention(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recording)
    return calls


@pytest.fixture
def llama(llama):
    return llama.double()


def with_window(stock) -> bool:
    return getattr(stock.config, "sliding_window", None) is not None


def float64(model):
    """A copy; experts have no faster products in it."""
    exact = copy.deepcopy(model).double()
    if hasattr(exact.config, "num_experts_per_tok"):
        exact.set_experts_implementation("eager")
    return exact


@pytest.fixture
def stock(stock):
    if stock.config.model_type == "gpt_oss":
        pytest.skip("its sinks are refused: test_sinks_are_refused")
    return stock


def assert_as_lrk(model, attention, inputs):
    """Logits and gradients of float64 models are equal."""
    found = {}
    for name in ("lrk", attention):
        each = lrk.patch(float64(model), attention=name, cross_entropy=False)
        logits = each(INPUT_IDS, use_cache=False, **inputs).logits
        logits.square().mean().backward()
        found[name] = logits, each.model.embed_tokens.weight.grad
    torch.testing.assert_close(found[attention], found["lrk"], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
@pytest.mark.parametrize("inputs", [{"position_ids": SKIPPED}, EXPLICIT])
def test_rows_that_are_documents(stock, installed, attention, inputs):
    if attention == "sdpa" and getattr(stock.config, "attn_logit_softcapping", None):
        pytest.skip("its softcap is refused, as a test below says")
    if with_window(stock):
        stock.config.sliding_window = 100  # wider than the positions reach
        for layer in stock.model.layers:
            if getattr(layer.self_attn, "sliding_window", None):
                layer.self_attn.sliding_window = 100
    assert_as_lrk(stock, attention, inputs)
    assert all(call["cu_seqlens_q"] is None for call in installed)
    assert (len(installed) > 0) == (attention in FLASH)


@pytest.mark.parametrize("side", MASKS)
def test_padding_is_documents(stock, installed, side):
    assert_as_lrk(stock, "flash_attention_2", {"attention_mask": MASKS[side]})
    assert all(call["cu_seqlens_q"] is not None for call in installed)


def test_packed_documents(stock, installed):
    inputs = dict(PACKED)
    if with_window(stock):
        inputs["position_ids"] = torch.arange(12).expand(2, -1) - torch.tensor(
            [[0] * 12, [0] * 6 + [6] * 6]
        )
    assert_as_lrk(stock, "flash_attention_2", inputs)
    assert {tuple(call["cu_seqlens_q"]) for call in installed} == {tuple(BOUNDARIES.tolist())}
    assert {(call["max_seqlen_q"], call["max_seqlen_k"]) for call in installed} == {(12, 12)}


def test_each_version_is_its_package(llama, installed):
    for attention in FLASH:
        assert_as_lrk(llama, attention, PACKED)
        assert_as_lrk(llama, attention, {"position_ids": SKIPPED})
    packages = [call["package"] for call in installed]
    assert packages == ["flash_attn"] * 4 + ["flash_attn_interface"] * 4 + ["flash_attn.cute"] * 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prefill_chunk_size": 5},
    ],
    ids=str,
)
def test_generation_with_padding(stock, installed, options):
    generated = [
        lrk.patch(float64(stock).eval(), attention=name).generate(
            INPUT_IDS,
            attention_mask=MASKS["left"],
            max_new_tokens=6,
            do_sample=False,
            disable_compile=True,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
        for name in ("lrk", "flash_attention_2")
    ]
    assert torch.equal(generated[0].sequences, generated[1].sequences)
    torch.testing.assert_close(generated[0].logits, generated[1].logits, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("mask", [None, torch.ones_like(INPUT_IDS)])
def test_sdpa_generates(llama, mask):
    llama.eval()
    expected, generated = (
        lrk.patch(copy.deepcopy(llama), attention=name).generate(
            INPUT_IDS, attention_mask=mask, max_new_tokens=6, do_sample=False
        )
        for name in ("lrk", "sdpa")
    )
    assert torch.equal(generated, expected)


@pytest.mark.parametrize("rope", [False, True])
def test_flash_attention_is_handed_no_positions(llama, installed, monkeypatch, rope):
    name = "flash_attention_2"
    integration, calls = ALL_ATTENTION_FUNCTIONS[name], []

    def recording(*tensors, **options):
        calls.append(options)
        return integration(*tensors, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, name, recording)
    model = lrk.patch(llama, rope=rope, attention=name)
    model(INPUT_IDS, position_ids=SKIPPED, attention_temperature=2.0)
    model(INPUT_IDS, **PACKED, max_length_q=12, max_length_k=12)
    for call in calls:
        assert "position_ids" not in call
        assert call["is_causal"] is True
        assert call["dropout"] == 0
        assert call["sliding_window"] is None
    assert calls[0]["scaling"] == pytest.approx(8**-0.5 / 2)
    assert calls[2]["scaling"] == pytest.approx(8**-0.5)
    assert installed[0]["causal"]


def test_a_window_is_handed_in_tokens(shape, installed):
    from transformers import MistralConfig, MistralForCausalLM

    model = MistralForCausalLM(MistralConfig(**shape, head_dim=8, sliding_window=7)).double()
    lrk.patch(model, attention="flash_attention_2")
    model(INPUT_IDS, position_ids=torch.arange(100, 112)[None])
    assert {call["window"] for call in installed} == {(6, 6)}
    installed.clear()
    model(INPUT_IDS[:, :7])
    assert {call["window"] for call in installed} == {(-1, -1)}


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_a_window_of_positions_is_refused(shape, installed, attention):
    from transformers import MistralConfig, MistralForCausalLM

    def model(window):
        made = MistralForCausalLM(MistralConfig(**shape, head_dim=8, sliding_window=window))
        return lrk.patch(made.double(), attention=attention)

    sentence = (
        r"position_ids skip by more than the model's sliding window of 93 leaves room for, and "
        f"attention '{attention}' counts it in tokens: use attention='lrk'"
    )
    with pytest.raises(ValueError, match=sentence):
        model(93)(INPUT_IDS, position_ids=SKIPPED)
    model(94)(INPUT_IDS, position_ids=SKIPPED)
    # The second row's documents reach over 47 positions each.
    if attention in FLASH:
        with pytest.raises(ValueError, match="sliding window of 51 leaves"):
            model(51)(
                INPUT_IDS[1:],
                **{
                    **PACKED,
                    "position_ids": PACKED["position_ids"][1:],
                    "cu_seq_lens_q": torch.tensor([0, 6, 12]),
                    "cu_seq_lens_k": torch.tensor([0, 6, 12]),
                },
            )
    # Positions that do not skip: a row longer than the window.
    if attention == "sdpa":
        with pytest.raises(ValueError, match="no windows, and sliding_window is 11 for 12 keys"):
            model(11)(INPUT_IDS)
        model(12)(INPUT_IDS)


def test_a_window_of_no_layer_is_none(shape):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    windows = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}
    model = Qwen2ForCausalLM(Qwen2Config(**shape, **windows))
    assert model.config.layer_types == ["full_attention"] * 2
    lrk.patch(model, attention="sdpa")(INPUT_IDS, position_ids=SKIPPED)


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8, 20])
def test_windows_differ_where_a_pair_does(window):
    from lrk.hf.base_model import _windows_differ

    generator = torch.Generator().manual_seed(window)
    for _ in range(40):
        steps = torch.randint(1, 4, (1, 9), generator=generator)
        steps = torch.where(torch.rand(1, 9, generator=generator) < 0.7, 1, steps)
        inside = torch.rand(1, 8, generator=generator) < 0.8
        positions = steps.cumsum(1)
        documents = torch.nn.functional.pad((~inside).long().cumsum(1), (1, 0))[0]
        index = torch.arange(9)
        pairs = (documents[:, None] == documents) & (index[:, None] >= index)
        in_tokens = index[:, None] - index < window
        in_positions = positions[0, :, None] - positions[0] < window
        expected = (pairs & (in_tokens != in_positions)).any()
        assert _windows_differ(positions, inside, window) == expected


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_the_trap_stays_closed(llama, installed, checkpointed, attention, checkpointing):
    """An edit before a skip shows behind it."""
    model = lrk.patch(llama, attention=attention)
    model = checkpointed(model) if checkpointing else model
    edited = INPUT_IDS[:1].clone()
    edited[0, 1] = 40
    before, after = (
        model(ids, position_ids=SKIPPED, use_cache=False).logits[0]
        for ids in (INPUT_IDS[:1], edited)
    )
    assert torch.equal(before[0], after[0])
    assert ((before - after).abs().amax(-1)[1:] > 1e-4).all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_other_documents_stay_hidden(llama, installed, checkpointed, checkpointing):
    """An edit in one document shows in none of the others, wherever their positions start."""
    model = lrk.patch(llama, attention="flash_attention_2")
    model = checkpointed(model) if checkpointing else model
    boundaries = torch.tensor([0, 6, 12], dtype=torch.int32)
    positions = torch.tensor([[0, 1, 2, 70, 71, 72, 5, 6, 40, 41, 42, 90]])
    documents = {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries}
    edited = INPUT_IDS[:1].clone()
    edited[0, 1] = 40
    before, after = (
        model(ids, position_ids=positions, use_cache=False, **documents).logits[0]
        for ids in (INPUT_IDS[:1], edited)
    )
    assert ((before - after).abs().amax(-1)[1:6] > 1e-4).all()
    assert torch.equal(before[6:], after[6:])


def test_sdpa_is_handed_causality_alone(llama, handed):
    model = lrk.patch(llama, attention="sdpa")
    model(INPUT_IDS, position_ids=SKIPPED, attention_temperature=2.0)
    assert len(handed) == 2
    for call in handed:
        assert call["attn_mask"] is None
        assert call["is_causal"] is True
        assert call["enable_gqa"] is True
        assert call["dropout_p"] == 0
        assert call["scale"] == pytest.approx(8**-0.5 / 2)


def test_sdpa_runs_no_kernel_that_forms_the_scores(llama):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model = lrk.patch(llama, attention="sdpa")
    with sdpa_kernel(SDPBackend.MATH), torch.profiler.profile() as profile:
        model(INPUT_IDS)
    names = {event.name for event in profile.events()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    assert "aten::_scaled_dot_product_attention_math" not in names


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"attention_mask": MASKS["left"]}, "attention_mask may have padding, or a static cache"),
        (PACKED, "knows no documents, and a row of the batch has several: put one in each row"),
        ({"softcap": 3.0}, "has no softcap, and softcap is 3.0: use attention='lrk'"),
        ({"deterministic": True}, r"torch.use_deterministic_algorithms\(True\) alone"),
    ],
)
def test_what_sdpa_refuses(llama, inputs, sentence):
    model = lrk.patch(llama, attention="sdpa")
    with pytest.raises(ValueError, match=sentence):
        model(INPUT_IDS, **inputs)


def test_sdpa_refuses_queries_on_a_cache(llama):
    model = lrk.patch(llama, attention="sdpa").eval()
    with pytest.raises(ValueError, match="aligns 5 queries with the first of 10 keys, not with"):
        model.generate(INPUT_IDS, max_new_tokens=2, prefill_chunk_size=5)
    cache = StaticCache(config=model.config, max_cache_len=20)
    with pytest.raises(
        ValueError, match=r"or a static cache room: .* take a dynamic cache, or use"
    ):
        model(INPUT_IDS, **named_cache(cache))


def test_what_flash_attention_refuses(llama, installed, monkeypatch):
    model = lrk.patch(llama, attention="flash_attention_3")
    with pytest.raises(
        ValueError, match="'flash_attention_3', whose kernels take float16 and bfloat16, and"
    ):
        copy.deepcopy(model).float()(INPUT_IDS)
    monkeypatch.setattr(flash_attention, "LARGEST_HEAD_DIM", 7)
    with pytest.raises(ValueError, match="take heads of up to 7 numbers, and the model's have 8"):
        model(INPUT_IDS)


def test_softcap_and_determinism_are_handed_on_or_refused(llama, installed, monkeypatch):
    model = lrk.patch(llama, attention="flash_attention_2")
    model(INPUT_IDS, softcap=3.0)
    assert {(call["softcap"], call["deterministic"]) for call in installed} == {(3.0, False)}
    installed.clear()
    torch.use_deterministic_algorithms(True)
    try:
        model(INPUT_IDS, **PACKED)
    finally:
        torch.use_deterministic_algorithms(False)
    assert {call["deterministic"] for call in installed} == {True}
    older = "transformers.modeling_flash_attention_utils._flash_varlen_fn"
    monkeypatch.setattr(older, lambda q, k, v: q)
    with pytest.raises(ValueError, match=r"softcap is 3.0, and the installed flash-attn does not"):
        model(INPUT_IDS, softcap=3.0)
    with pytest.raises(ValueError, match="deterministic is True, and the installed flash-attn"):
        model(INPUT_IDS, deterministic=True)


def test_autocast_is_half_precision(llama, installed):
    model = lrk.patch(llama.float(), attention="flash_attention_2")
    with torch.autocast("cpu", torch.bfloat16):
        model(INPUT_IDS)
    assert len(installed) == 2


@pytest.mark.parametrize("given", [(None, None), (8, 9)])
def test_the_longest_document_is_found_once(llama, installed, given):
    """Also where more was given."""
    documents = dict(PACKED, cu_seq_lens_q=torch.tensor([0, 5, 12, 18, 24]))
    documents["cu_seq_lens_k"] = documents["cu_seq_lens_q"]
    documents["position_ids"] = torch.arange(12).repeat(2, 1)
    documents |= {"max_length_q": given[0], "max_length_k": given[1]}
    lrk.patch(llama, attention="flash_attention_2")(INPUT_IDS, **documents)
    assert [(call["max_seqlen_q"], call["max_seqlen_k"]) for call in installed] == [(7, 7)] * 2


@pytest.mark.parametrize("name", ["max_length_q", "max_length_k"])
def test_a_longest_document_that_is_too_short_is_refused(llama, installed, name):
    """FlashAttention would not compute the rest."""
    stale = {**PACKED, name: 11}
    model = lrk.patch(llama, attention="flash_attention_2")
    with pytest.raises(ValueError, match=f"{name} is 11, and the longest document has 12 tokens"):
        model(INPUT_IDS, **stale)
    lrk.patch(llama)(INPUT_IDS, **stale)


def test_the_longest_document_is_never_1(llama, installed):
    """Which would promise that each document has a query, and one has none."""
    documents = {
        "cu_seq_lens_q": torch.tensor([0, 1, 1, 2, 3]),
        "cu_seq_lens_k": torch.tensor([0, 1, 1, 2, 3]),
    }
    expected, found = (
        lrk.patch(llama, attention=name)(INPUT_IDS[:1, :3], **documents).logits
        for name in ("lrk", "flash_attention_2")
    )
    torch.testing.assert_close(found, expected)
    assert {(call["max_seqlen_q"], call["max_seqlen_k"]) for call in installed} == {(2, 2)}


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_a_model_that_is_not_patched_is_refused(llama, installed, attention):
    llama.set_attn_implementation(BACKENDS[attention])
    sentence = rf"the model is not patched, and .*: use lrk.patch\(model, attention='{attention}'"
    with pytest.raises(ValueError, match=sentence):
        llama(INPUT_IDS)


@pytest.mark.parametrize("attention", ["lrk", "sdpa", "flash_attention_2"])
def test_documents_across_rows_are_refused(llama, installed, attention):
    """As many as rows would pass for the rows."""
    model = lrk.patch(llama, attention=attention)
    documents = torch.tensor([0, 5, 24], dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_seq_lens_q has a document across two rows of 12 tok"):
        model(INPUT_IDS, position_ids=torch.arange(12)[None], cu_seq_lens_q=documents)


@pytest.mark.parametrize("position_ids", [None, SKIPPED], ids=["no positions", "positions"])
@pytest.mark.parametrize("attention", ["lrk", "sdpa", "flash_attention_2"])
@pytest.mark.parametrize(
    ("ends", "ends_k", "sentence"),
    [
        ([0, 5, 24], [0, 5, 24], "cu_seq_lens_q has a document across two rows of 12 tokens"),
        ([0, 12, 24], [0, 4, 24], "cu_seq_lens_k has a document across two rows of 12 tokens"),
        (None, [0, 12, 24], "cu_seq_lens_k is given without cu_seq_lens_q"),
        ([0, 12, 18], None, "cu_seq_lens_q ends at 18; it must end at 24, with 2 rows of 12 tok"),
        ([0, 12, 24], [0, 12, 25], "cu_seq_lens_k ends at 25; it must end at 24"),
        ([2, 12, 24], None, "cu_seq_lens_q starts at 2; it must start at 0"),
        ([0, 12, 7, 24], None, "cu_seq_lens_q falls by 5; each document ends where it starts or"),
        ([0, 12, 24], [0, 12, 18, 24], r"cu_seq_lens_k has shape \(4,\); .* that of cu_seq_lens_q"),
        ([0], None, r"cu_seq_lens_q has shape \(1,\); it must be \(N \+ 1,\) for N documents"),
        ([0, 0], None, "cu_seq_lens_q ends at 0; it must end at 24"),
    ],
)
def test_documents_that_are_none_are_refused(
    llama, installed, attention, position_ids, ends, ends_k, sentence
):
    model = lrk.patch(llama, attention=attention)
    documents = {
        name: None if given is None else torch.tensor(given, dtype=torch.int32)
        for name, given in (("cu_seq_lens_q", ends), ("cu_seq_lens_k", ends_k))
    }
    with pytest.raises(ValueError, match=sentence):
        model(INPUT_IDS, position_ids=position_ids, **documents)


def test_documents_of_single_tokens_are_looked_at(llama):
    model = lrk.patch(llama, attention="sdpa")
    with pytest.raises(ValueError, match="cu_seq_lens_q ends at 3; it must end at 2, with 2 rows"):
        model(INPUT_IDS[:, :1], cu_seq_lens_q=torch.tensor([0, 1, 3]))


@pytest.mark.parametrize("attention", ["lrk", "sdpa", "flash_attention_2"])
def test_positions_that_nobody_gives_are_the_stock_ones(llama, installed, attention):
    """Documents are looked at beside them, also behind a cache."""
    model = lrk.patch(llama.eval(), attention=attention)
    expected = model(INPUT_IDS).logits
    documents = {"cu_seq_lens_q": TWO_ROWS, "cu_seq_lens_k": TWO_ROWS}
    torch.testing.assert_close(model(INPUT_IDS, **documents).logits, expected)
    cache = cache_of(model(INPUT_IDS[:, :11], use_cache=True))
    single = {"cu_seq_lens_q": torch.tensor([0, 1, 2])}
    if attention != "sdpa":
        single["cu_seq_lens_k"] = TWO_ROWS
    after = model(INPUT_IDS[:, 11:], **named_cache(cache), **single).logits
    torch.testing.assert_close(after, expected[:, 11:])


def test_sdpa_refuses_documents_in_a_cache(llama):
    model = lrk.patch(llama, attention="sdpa").eval()
    cache = cache_of(model(INPUT_IDS[:, :11], use_cache=True))
    documents = {"cu_seq_lens_q": torch.tensor([0, 1, 2]), "cu_seq_lens_k": TWO_ROWS}
    with pytest.raises(ValueError, match="no documents, and cu_seq_lens_k packs the keys of a"):
        model(INPUT_IDS[:, 11:], **named_cache(cache), **documents)


def test_positions_that_start_again_are_refused(llama, installed):
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]])
    for attention in ("sdpa", "flash_attention_2"):
        model = lrk.patch(llama, attention=attention)
        with pytest.raises(ValueError, match="position_ids start again inside a row"):
            model(INPUT_IDS, position_ids=positions)


def test_the_names_say_nothing_to_transformers():
    for name in OURS:
        assert not is_flash_attention_requested(requested_attention_implementation=name)
        assert name == "lrk" or not any(word in name for word in ("flash", "sdpa", "flex", "/"))


@pytest.mark.parametrize("attention", FLASH)
def test_a_package_that_is_missing_is_named(llama, monkeypatch, attention):
    stand_in_flash_attn.install(monkeypatch)
    before = llama.config._attn_implementation
    package = flash_attention.PACKAGES[attention]
    sentence = f"attention is '{attention}', but transformers finds no package {package} and a GPU"
    with pytest.raises(ValueError, match=sentence):
        lrk.patch(llama, attention=attention)
    assert type(llama) is type(lrk.unpatch(llama))
    assert llama.config._attn_implementation == before
    with pytest.raises(ValueError, match=sentence):
        lrk.apply_lrk_to_llama(attention=attention)
    with pytest.raises(ValueError, match=sentence):
        lrk.AutoLrkModelForCausalLM.from_config(llama.config, attention=attention)
    monkeypatch.delattr(f"transformers.utils.is_flash_attn_{attention[-1]}_available")
    with pytest.raises(ValueError, match=r"which transformers 5\S+ does not know: use a later rel"):
        lrk.patch(llama, attention=attention)


@pytest.mark.parametrize("attention", FLASH)
def test_a_package_that_is_broken_is_named(llama, installed, monkeypatch, attention):
    """Each time: some releases of transformers note the import before they try it."""
    package = flash_attention.PACKAGES[attention]
    modules = ("flash_attn", "flash_attn_interface", "flash_attn.cute")
    other = next(name for name in FLASH if name != attention)
    lrk.patch(llama, attention=other)
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=f"'{attention}', but {package} is installed and cannot be imported: i"
        ):
            lrk.patch(llama, attention=attention)
    assert llama.config._attn_implementation == BACKENDS[other]
    # Somebody else imported it, and went on.
    integration = flash_attention.integration
    monkeypatch.setattr(integration, "_loaded_implementation", attention)
    monkeypatch.setattr(integration, "_flash_varlen_fn", None)
    with pytest.raises(ValueError, match=f"{package} is installed and cannot be imported: transf"):
        lrk.patch(llama, attention=attention)


@pytest.mark.parametrize("attention", ["false", 1, 0, None, "flash_attention", "eager"])
def test_other_choices_are_refused(llama, attention):
    sentence = (
        f"attention is {attention!r}; it must be True, False or one of lrk, sdpa, "
        "flash_attention_2, flash_attention_3, flash_attention_4"
    )
    for call in (
        partial(lrk.patch, llama),
        lrk.apply_lrk_to_mistral,
        partial(lrk.AutoLrkModelForCausalLM.from_config, llama.config),
    ):
        with pytest.raises(ValueError, match=sentence):
            call(attention=attention)


@pytest.mark.parametrize("attention", BACKENDS)
def test_patch_and_unpatch(llama, installed, attention):
    stock = llama.config._attn_implementation
    lrk.patch(llama, attention=attention)
    assert llama.config._attn_implementation == BACKENDS[attention]
    lrk.patch(llama, attention=False)
    assert llama.config._attn_implementation == stock
    with lrk.patched(llama, attention=attention):
        assert llama.config._attn_implementation == BACKENDS[attention]
    assert llama.config._attn_implementation == stock
    lrk.apply_lrk_to_llama(attention=attention)
    try:
        made = type(llama)(llama.config)
    finally:
        lrk.revert_lrk()
    assert made.config._attn_implementation == BACKENDS[attention]
    made = lrk.AutoLrkModelForCausalLM.from_config(llama.config, attention=attention)
    assert made.config._attn_implementation == BACKENDS[attention]


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_a_model_of_a_patched_models_config(llama, installed, attention):
    """Its stock attention is not what the config names, but transformers' own."""
    for choice in (False, "lrk"):
        lrk.patch(llama, attention=attention)
        other = type(llama)(llama.config)
        assert other.config._attn_implementation == BACKENDS[attention]
        lrk.patch(other, attention=choice)
        assert other.config._attn_implementation == ("lrk" if choice else "sdpa")
        lrk.unpatch(other)
        assert other.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_messages_name_the_attention(llama, installed, attention):
    model = lrk.patch(llama, attention=attention)
    with pytest.raises(ValueError, match=f"strange reached the {attention} attention, which does"):
        model(INPUT_IDS, strange=1)
    llama.config.attention_dropout = 0.1
    with pytest.raises(ValueError, match=rf"is 0\.1; the {attention} attention has none"):
        lrk.patch(llama, attention=attention)


@pytest.mark.parametrize("name", ["sdpa", "flash_attention_2"])
def test_transformers_own_backend_is_refused_as_before(llama, installed, monkeypatch, name):
    model = lrk.patch(llama, attention=name)
    model(INPUT_IDS, position_ids=SKIPPED)
    model.config._attn_implementation = name  # what `set_attn_implementation` ends with
    with pytest.raises(ValueError, match=f"position_ids skip, and .* {name!r} takes every skip"):
        model(INPUT_IDS, position_ids=SKIPPED)


@pytest.mark.parametrize("parts", [{"rope": False}, {"cross_entropy": False}, {"tile_tokens": 5}])
def test_other_parts_combine(llama, installed, parts):
    expected, found = (
        lrk.patch(copy.deepcopy(llama), attention=name, **parts)(
            INPUT_IDS, position_ids=SKIPPED, labels=INPUT_IDS
        ).loss
        for name in ("lrk", "flash_attention_2")
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("attention", "inputs"),
    [
        ("sdpa", {"position_ids": SKIPPED}),
        ("flash_attention_2", {"attention_mask": MASKS["left"]}),
        ("flash_attention_2", PACKED),
    ],
)
@torch.no_grad()
def test_compiled(llama, installed, attention, inputs):
    torch._dynamo.reset()
    model = lrk.patch(llama, attention=attention)
    model.model.layers = model.model.layers[:1]
    expected = model(INPUT_IDS, **inputs).logits
    found = torch.compile(model, backend="aot_eager", fullgraph=True)(INPUT_IDS, **inputs).logits
    torch.testing.assert_close(found, expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
@torch.no_grad()
def test_documents_are_looked_at_in_a_graph(llama, installed, attention):
    """Without positions too."""
    torch._dynamo.reset()
    model = lrk.patch(llama, attention=attention)
    model.model.layers = model.model.layers[:1]
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(INPUT_IDS, cu_seq_lens_q=TWO_ROWS, cu_seq_lens_k=TWO_ROWS)
    wrong = torch.tensor([0, 5, 24], dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_seq_lens_q has a document across two rows of 12"):
        compiled(INPUT_IDS, cu_seq_lens_q=wrong, cu_seq_lens_k=wrong)
    torch._dynamo.reset()


def test_sinks_are_refused():
    model = lrk.patch(tiny_model(tiny_config("gpt_oss", sliding_window=64)), attention="sdpa")
    with pytest.raises(ValueError, match="attention is 'sdpa', which has no sinks, and the model"):
        model(torch.arange(2, 14)[None], use_cache=False)

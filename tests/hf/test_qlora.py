"""Adapters on weights of 4 bits: bitsandbytes' layers inside a patched model.

Without a GPU bitsandbytes computes in PyTorch: the layers and their gradients are those of QLoRA,
their kernels are not.
"""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import lrk

bitsandbytes = pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes")

INPUT_IDS = torch.arange(2, 26).view(2, 12)
SKIPPED = torch.tensor([[0, 1, 2, 3, 50, 51, 52, 53, 90, 91, 92, 93]])


@pytest.fixture
def shape(shape):
    """Widths as real models have, multiples of 64.

    Where a processor has AVX512-BF16, bitsandbytes takes no others for products without gradients.
    """
    return shape | {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4}


@pytest.fixture
def in_4_bits(tmp_path):
    """Load a stock model again as the paper of QLoRA has it: NF4, scales quantised too."""

    def load(stock):
        stock.save_pretrained(tmp_path)
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path,
            quantization_config=config,
            dtype=torch.float32,
            attn_implementation=stock.config._attn_implementation,
        )
        assert isinstance(model.model.layers[0].self_attn.o_proj, bitsandbytes.nn.Linear4bit)
        return model

    return load


def adapted(model):
    """With an adapter that already does something."""
    torch.manual_seed(1)
    experts = hasattr(model.config, "num_experts_per_tok")  # and older releases of peft know none
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"] if experts else "all-linear"
    config = peft.LoraConfig(
        r=4, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False
    )
    return peft.get_peft_model(model, config).train()


def classes(model) -> list[type]:
    return [type(module) for module in model.modules()]


def step(model, **inputs):
    model.zero_grad()
    output = model(INPUT_IDS, labels=INPUT_IDS, use_cache=False, **inputs)
    output.loss.backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    return output.loss.detach(), gradients


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0])
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "patch_first",
    [
        pytest.param(True, marks=pytest.mark.support("QLoRA, patched before"), id="before"),
        pytest.param(False, marks=pytest.mark.support("QLoRA, patched after"), id="after"),
    ],
)
def test_adapters_train_as_on_the_stock_model(stock, in_4_bits, patch_first):
    plain = adapted(in_4_bits(stock))
    model = in_4_bits(stock)
    model = adapted(lrk.patch(model)) if patch_first else lrk.patch(adapted(model))
    assert model(INPUT_IDS, labels=INPUT_IDS).logits is None
    assert_same(step(model), step(plain))
    merged, expected = model.eval().merge_and_unload(), plain.eval().merge_and_unload()
    torch.testing.assert_close(
        merged(INPUT_IDS).logits, expected(INPUT_IDS).logits, rtol=1e-3, atol=1e-5
    )
    assert merged.config._attn_implementation == "lrk"
    assert classes(lrk.unpatch(merged)) == classes(expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_an_adapter_with_checkpointing_learns_across_skips(
    llama, in_4_bits, checkpointed, use_reentrant
):
    model = adapted(lrk.patch(in_4_bits(llama)))
    expected = step(model, position_ids=SKIPPED)
    model.enable_input_require_grads()
    checkpointed(model, use_reentrant=use_reentrant)
    assert_same(step(model, position_ids=SKIPPED), expected)
    gradients = expected[1]
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
    assert gradients[name].abs().max() > 0


def test_a_model_prepared_by_peft(llama, in_4_bits):
    """`prepare_model_for_kbit_training` freezes, upcasts and switches checkpointing on."""
    plain, ours = (peft.prepare_model_for_kbit_training(in_4_bits(llama)) for _ in range(2))
    assert_same(step(lrk.patch(adapted(ours))), step(adapted(plain)))


def test_saved_adapters_fit_the_stock_model(llama, in_4_bits, tmp_path):
    model = adapted(lrk.patch(in_4_bits(llama))).eval()
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(in_4_bits(llama), tmp_path / "adapter").eval()
    # Only one of them is frozen, and some processors have other products where there are gradients.
    with torch.no_grad():
        torch.testing.assert_close(again(INPUT_IDS).logits, model(INPUT_IDS).logits)


def test_a_patched_model_is_dequantised(llama, in_4_bits):
    model = lrk.patch(in_4_bits(llama)).eval()
    expected = model(INPUT_IDS).logits
    model.dequantize(torch.float32)
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    torch.testing.assert_close(model(INPUT_IDS).logits, expected, rtol=1e-3, atol=1e-5)
    assert type(lrk.unpatch(model)) is type(llama)

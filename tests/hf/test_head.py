"""The loss without logits, of an output embedding with adapters, or divided among processes."""

import copy
from pathlib import Path

import peft
import pytest
import torch
import torch.distributed as dist
import transformers
from packaging.version import Version
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import lrk
from lrk.hf.head import head_of
from studies.ranks import run_ranks

INPUT_IDS = torch.arange(2, 26).view(2, 12)
LORA = {"r": 3, "lora_alpha": 5, "init_lora_weights": False}
ADAPTERS = {
    "LoRA": {"target_modules": ["q_proj", "lm_head"]},
    "LoRA with a bias": {"target_modules": ["lm_head"], "lora_bias": True},
    "LoRA with dropout": {"target_modules": ["lm_head"], "lora_dropout": 0.4},
    "rank-stabilised LoRA": {"target_modules": ["lm_head"], "use_rslora": True},
    "modules_to_save": {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]},
}


def adapted(model, **options):
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(**LORA | options)).train()


def step(model):
    model.zero_grad()
    torch.manual_seed(2)
    loss = model(INPUT_IDS, labels=INPUT_IDS, use_cache=False).loss
    loss.backward()
    gradients = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    return loss.detach(), gradients


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0])
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("patch_first", [True, False])
@pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.support("adapters on lm_head")
def test_loss_and_gradients_as_stock(stock, options, patch_first):
    plain = adapted(copy.deepcopy(stock), **options)
    model = (
        adapted(lrk.patch(stock), **options)
        if patch_first
        else lrk.patch(adapted(stock, **options))
    )
    expected = step(plain)
    assert any("lm_head" in name for name in expected[1])
    assert_same(step(model), expected)
    assert model(INPUT_IDS, labels=INPUT_IDS).logits is None
    with model.disable_adapter(), plain.disable_adapter():
        losses = [each(INPUT_IDS, labels=INPUT_IDS).loss for each in (model, plain)]
    torch.testing.assert_close(*losses)


def test_several_adapters_and_merged_ones(llama):
    models = []
    for model in (copy.deepcopy(llama), lrk.patch(llama)):
        both = adapted(model, target_modules=["lm_head"])
        other = peft.LoraConfig(**LORA | {"r": 2, "target_modules": ["lm_head"]})
        torch.manual_seed(3)
        both.add_adapter("other", other)
        models.append(both)
    plain, model = models
    for each in models:
        each.base_model.set_adapter(["default", "other"])
    assert_same(step(model), step(plain))
    hidden = torch.randn(4, 48)
    head = head_of(model.get_base_model().lm_head, hidden)
    assert head.weight.shape == (61, 48 + 3 + 2)
    for each in models:
        each.eval().merge_adapter()
    losses = [each(INPUT_IDS, labels=INPUT_IDS).loss for each in models]
    torch.testing.assert_close(*losses)
    for each in models:  # peft takes merged adapters out again where they are disabled
        with each.disable_adapter():
            losses.append(each(INPUT_IDS, labels=INPUT_IDS).loss)
    torch.testing.assert_close(losses[3], losses[2])
    assert not torch.allclose(losses[3], losses[1])


def test_small_terms_are_not_rounded_to_the_weights():
    """In bfloat16 a term below 2^-9 of the weights would vanish in a sum."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 32, bias=False)
    model = adapted(torch.nn.Sequential(layer), target_modules=["0"])
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.lora_B["default"].weight.mul_(1e-3)
    hidden = torch.randn(16, 64)
    exact = head_of(layer.double(), hidden.double())
    term = exact.hidden[:, 64:] @ exact.weight[:, 64:].T
    rounded = head_of(layer.bfloat16(), hidden.bfloat16())
    ours = rounded.hidden[:, 64:].double() @ rounded.weight[:, 64:].double().T
    assert (ours - term).norm() < 2e-2 * term.norm()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"use_dora": True}, r"lm_head is a peft\.\S+Linear of the variant DoraLinearVariant; lrk"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [1]}}, "Trainable"),
    ],
)
def test_other_adapters_are_refused(llama, options, sentence):
    model = lrk.patch(adapted(llama, **{"target_modules": ["lm_head"]} | options))
    with pytest.raises(ValueError, match=sentence):
        model(INPUT_IDS, labels=INPUT_IDS)
    lrk.patch(model, cross_entropy=False)(INPUT_IDS, labels=INPUT_IDS).loss.backward()


def test_adapters_of_the_rows_of_a_batch_are_refused(llama):
    model = lrk.patch(adapted(llama, target_modules=["lm_head"])).eval()
    with pytest.raises(ValueError, match="with hooks"):
        model(INPUT_IDS, labels=INPUT_IDS, adapter_names=["default", "__base__"])


DIVIDES_BY_CONFIG = Version(transformers.__version__) >= Version("5.17")


def test_a_hook_that_changes_logits_does_not_change_a_loss_in_silence(llama):
    lrk.patch(llama).train()
    seen = []
    handle = llama.lm_head.register_forward_hook(lambda module, args, out: seen.append(out))
    expected = llama(INPUT_IDS, labels=INPUT_IDS).loss
    assert isinstance(seen[0], tuple), "no tensor in the place of logits"
    handle.remove()
    llama.lm_head.register_forward_hook(lambda module, args, out: out * 0.5)
    with pytest.raises(TypeError):
        llama(INPUT_IDS, labels=INPUT_IDS)
    torch.testing.assert_close(seen[0][0], expected)


def test_a_head_with_a_forward_of_its_own_is_refused(llama):
    llama.lm_head.forward = lambda hidden: hidden
    with pytest.raises(ValueError, match="lm_head has a forward of its own"):
        lrk.patch(llama)
    lrk.patch(llama, cross_entropy=False)


# Whether the rows of a head need not divide by the number of processes.
UNEVEN = Version(transformers.__version__) >= Version("5.24")


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def loss_and_gradients(model):
    loss, gradients = step(model.train())
    return loss, {name: whole(gradient) for name, gradient in gradients.items()}


def tensor_parallel_model(folder: Path):
    """A model divided by transformers, its head by rows."""
    dist.init_process_group("gloo")
    if DIVIDES_BY_CONFIG:
        from transformers.distributed import DistributedConfig

        options = {"distributed_config": DistributedConfig(tp_size=2)}
    else:
        plan = {f"model.{name}": style for name, style in LlamaConfig.base_model_tp_plan.items()}
        options = {"tp_plan": {**plan, "lm_head": "colwise_gather_output"}}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **options)


def tensor_parallel_rank(folder: Path):
    model = lrk.patch(tensor_parallel_model(folder))
    rows = model.lm_head.weight.to_local().shape[0]
    loss, gradients = loss_and_gradients(model)
    return rows, loss, {name: gradients[name] for name in ("lm_head.weight", "model.norm.weight")}


def refusing_rank(folder: Path):
    model = lrk.patch(tensor_parallel_model(folder))
    with pytest.raises(ValueError, match=r"Linear divided among processes as by .* before 5\.17; "):
        model(INPUT_IDS, labels=INPUT_IDS)
    lrk.patch(model, cross_entropy=False)(INPUT_IDS, labels=INPUT_IDS).loss.backward()


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61 if UNEVEN else 60,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    return model


@pytest.mark.skipif(not DIVIDES_BY_CONFIG, reason="transformers forgets how many rows there are")
def test_rows_of_a_column_parallel_head_are_never_gathered(saved, tmp_path):
    size = saved.config.vocab_size
    expected = loss_and_gradients(lrk.patch(saved.double()))
    found = run_ranks(tensor_parallel_rank, 2, tmp_path)
    assert [rows for rows, *_ in found] == [-(-size // 2), size // 2]
    for _, loss, gradients in found:
        torch.testing.assert_close(loss, expected[0])
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[1][name], msg=name)


@pytest.mark.skipif(DIVIDES_BY_CONFIG, reason="transformers knows how many rows there are")
def test_a_column_parallel_head_of_older_releases_is_refused(saved, tmp_path):
    run_ranks(refusing_rank, 2, tmp_path)


def fsdp_rank(model, modules):
    """A model sharded as accelerate does it, its norm and head in one group."""
    dist.init_process_group("gloo")
    lrk.patch(model)
    for layer in model.get_base_model().model.layers if modules else model.model.layers:
        fully_shard(layer)
    base = model.get_base_model() if modules else model
    fully_shard([base.model.norm, base.lm_head], reshard_after_forward=False)
    fully_shard(model)
    return loss_and_gradients(model)


@pytest.mark.parametrize("adapters", [None, "LoRA", "modules_to_save"])
def test_a_head_whose_weight_fsdp_brings(llama, adapters):
    model = llama
    if adapters:
        model = adapted(llama, **ADAPTERS[adapters])
    model.float()
    expected = loss_and_gradients(lrk.patch(copy.deepcopy(model)))
    for found in run_ranks(fsdp_rank, 2, lrk.unpatch(model), bool(adapters)):
        assert_same(found, expected)


def wrapper_sharded_inside_rank(model):
    """The patch before peft does not know the wrapper, so that nobody calls it for the loss."""
    dist.init_process_group("gloo")
    model = adapted(lrk.patch(model), **ADAPTERS["modules_to_save"])
    fully_shard(model.get_base_model().lm_head.modules_to_save["default"])
    with pytest.raises(ValueError, match=r"sharded by FSDP .* \(patch after peft\); lrk's loss"):
        step(model)


def test_a_shard_of_fsdp_is_not_taken_for_rows(llama):
    run_ranks(wrapper_sharded_inside_rank, 2, llama)

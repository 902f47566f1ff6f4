"""TRL's trainers on patched models: which kernels run, and that losses are those of TRL alone."""

from types import SimpleNamespace

import pytest
import torch

trl = pytest.importorskip("trl")

from datasets import Dataset  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig  # noqa: E402
from trl.trainer import utils as trl_utils  # noqa: E402

import lrk  # noqa: E402
import lrk.trl  # noqa: E402
from examples.trl_losses import (  # noqa: E402
    HEADS,
    NOTES,
    RUNS,
    byte_tokenizer,
    largest_difference,
    losses_of,
    tiny_llama,
)
from lrk.hf import head  # noqa: E402
from lrk.hf.canary import tiny_config, tiny_model  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("datasets_cache"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SETTINGS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
}


@pytest.fixture
def calls(monkeypatch):
    """How often lrk's loss, lrk's log-probabilities and TRL's kernel were called."""
    counts = {"lrk loss": 0, "lrk logprobs": 0, "TRL": 0}

    def counted(name, function):
        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(
        head, "linear_cross_entropy", counted("lrk loss", head.linear_cross_entropy)
    )
    monkeypatch.setattr(lrk.trl, "token_logprobs", counted("lrk logprobs", lrk.trl.token_logprobs))
    kernel = trl_utils._ChunkedLogProbFunction
    apply = staticmethod(counted("TRL", kernel.apply))
    monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", type("Counted", (), {"apply": apply}))
    return counts


def sft_trainer(kind, model, tokenizer, folder, **options):
    return kind(
        model,
        SFTConfig(str(folder), **SETTINGS | {"max_length": 128} | options),
        train_dataset=Dataset.from_dict({"text": NOTES[:8]}),
        eval_dataset=Dataset.from_dict({"text": NOTES[:4]}),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_those_of_trl(name, calls):
    losses = {}
    for which in HEADS:
        before = dict(calls)
        losses[which] = RUNS[name](which, 3)
        called = {kernel for kernel in calls if calls[kernel] > before[kernel]}
        lrk_kernel = "lrk loss" if name.startswith("SFT") else "lrk logprobs"
        assert called == ({lrk_kernel} if which == "lrk's head" else {"TRL"})
    assert len(set(losses["stock"])) > 1
    for which in HEADS[1:]:
        assert largest_difference(losses["stock"], losses[which]) < 1e-5


def test_evaluation_forms_logits_only_for_metrics(tmp_path, calls):
    tokenizer = byte_tokenizer()
    model = lrk.patch(tiny_llama(tokenizer))
    seen = []
    trainer = sft_trainer(lrk.trl.SFTTrainer, model, tokenizer, tmp_path)
    handle = model.lm_head.register_forward_hook(lambda *given: seen.append(given[2]))
    loss = trainer.evaluate()["eval_loss"]
    assert {type(output) for output in seen} == {tuple}  # the loss, not logits
    handle.remove()
    trainer.compute_metrics = lambda given: {"width": given.predictions.shape[-1]}
    measured = trainer.evaluate()
    assert measured["eval_loss"] == pytest.approx(loss, abs=1e-6)
    assert measured["eval_width"] == len(tokenizer)
    stock = sft_trainer(trl.SFTTrainer, tiny_llama(tokenizer), tokenizer, tmp_path)
    assert stock.evaluate()["eval_loss"] == pytest.approx(loss, abs=1e-5)


def test_patching_behind_the_trainer(tmp_path):
    """TRL keeps the forward that it found, so only what is below it can be patched."""
    tokenizer = byte_tokenizer()
    stock = losses_of(sft_trainer(trl.SFTTrainer, tiny_llama(tokenizer), tokenizer, tmp_path))
    trainer = sft_trainer(trl.SFTTrainer, tiny_llama(tokenizer), tokenizer, tmp_path)
    with pytest.raises(ValueError, match="patch first, or with cross_entropy=False, which leaves"):
        lrk.patch(trainer.model)
    lrk.patch(trainer.model, cross_entropy=False)
    assert trainer.model.config._attn_implementation == "lrk"
    assert largest_difference(losses_of(trainer), stock) < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "granite"])
def test_logprobs_are_those_of_selective_log_softmax(model_type, temperature):
    """Gemma caps its logits, Granite divides them."""
    model = lrk.patch(tiny_model(tiny_config(model_type)).float().train())
    parameters = [model.lm_head.weight, model.model.layers[0].self_attn.q_proj.weight]
    tokens = torch.randint(3, model.config.vocab_size, (3, 17))
    labels = tokens.masked_fill(torch.rand(3, 17) < 0.4, -100)
    kept = labels[:, 1:] != -100

    logits = model(tokens).logits[:, :-1]
    expected = trl_utils.selective_log_softmax(logits, tokens[:, 1:], temperature)
    entropy = trl_utils.entropy_from_logits(logits / temperature)
    upstream = torch.randn(3, 16)

    def gradients(logprobs, entropies):
        total = ((logprobs + 0.1 * entropies) * upstream)[kept].sum()
        return torch.autograd.grad(total, parameters)

    expected_gradients = gradients(expected, entropy)
    trl_utils.add_fused_lm_head(model)
    trl_forward = model.forward
    lrk.trl._answer(model, temperature, logs_logits=True)
    scored = model(input_ids=tokens, labels=labels, fused_lm_head=True)
    assert (scored.log_probs - expected)[kept].abs().max() < 1e-5
    assert (scored.entropy - entropy)[kept].abs().max() < 1e-5
    assert not scored.log_probs[~kept].any()
    assert torch.equal(scored.label_mask, kept)
    ours_and_theirs = (gradients(scored.log_probs, scored.entropy), expected_gradients)
    for ours, theirs in zip(*ours_and_theirs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(scored.is_top1, (logits.argmax(-1) == tokens[:, 1:]) & kept)
    mean = (logits / temperature).mean(-1).masked_fill(~kept, 0)
    torch.testing.assert_close(scored.mean_logits, mean, rtol=1e-4, atol=1e-5)
    squared = (logits / temperature).log_softmax(-1).mul(2).logsumexp(-1).masked_fill(~kept, 0)
    torch.testing.assert_close(scored.log_sum_sq_probs, squared, rtol=1e-4, atol=1e-5)
    # Without the argument it is the model itself.
    assert torch.equal(model(tokens).logits, trl_forward(tokens).logits)


@pytest.mark.parametrize("which", ["TRL's head", "lrk's head"])
def test_group_relative_policy_optimization(which, tmp_path, calls):
    tokenizer = byte_tokenizer()

    def reward(completions, **_):
        return [float(len(set(text))) for text in completions]

    def train(patched):
        model = tiny_llama(tokenizer)
        trainer = GRPOTrainer(
            lrk.patch(model) if patched else model,
            reward,
            GRPOConfig(
                str(tmp_path),
                **SETTINGS,
                num_generations=2,
                max_completion_length=6,
                temperature=0.8,
                learning_rate=1e-3,
            ),
            train_dataset=Dataset.from_dict({"prompt": NOTES[:4]}),
            processing_class=tokenizer,
        )
        if patched and which == "lrk's head":
            lrk.trl.use_lrk_logprobs(trainer)
        losses = losses_of(trainer)
        rows = [row for row in trainer.state.log_history if "loss" in row]
        return losses, [row["grad_norm"] for row in rows], [row["entropy"] for row in rows]

    stock = train(patched=False)
    before = dict(calls)
    patched = train(patched=True)
    assert max(stock[1]) > 0.01
    for ours, theirs in zip(patched, stock, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    called = {kernel for kernel in calls if calls[kernel] > before[kernel]}
    assert called == ({"lrk logprobs"} if which == "lrk's head" else {"TRL"})


def test_preferences_with_an_adapter(tmp_path):
    """The reference is the model without its adapter."""
    tokenizer = byte_tokenizer()
    pairs = Dataset.from_dict({"prompt": NOTES[:4], "chosen": NOTES[4:8], "rejected": NOTES[8:12]})

    def train(patched):
        model = tiny_llama(tokenizer)
        if patched:
            lrk.patch(model)
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
        trainer = DPOTrainer(
            model,
            args=DPOConfig(str(tmp_path), **SETTINGS | {"learning_rate": 1e-2}),
            train_dataset=pairs,
            processing_class=tokenizer,
        )
        if patched:
            lrk.trl.use_lrk_logprobs(trainer)
        return losses_of(trainer)

    stock, patched = train(False), train(True)
    assert len(set(stock)) > 1
    assert largest_difference(stock, patched) < 1e-5


def test_what_would_not_be_lrks_is_refused(tmp_path, monkeypatch):
    tokenizer = byte_tokenizer()
    monkeypatch.setattr(trl.SFTTrainer, "_prepare_dataset", None)  # nothing is begun before
    with pytest.raises(ValueError, match=r"whose loss is not lrk's: call lrk\.patch"):
        sft_trainer(lrk.trl.SFTTrainer, tiny_llama(tokenizer), tokenizer, tmp_path)
    model = lrk.patch(tiny_llama(tokenizer))
    with pytest.raises(ValueError, match="loss_type is 'dft'; lrk's loss is 'nll'"):
        sft_trainer(lrk.trl.SFTTrainer, model, tokenizer, tmp_path, loss_type="dft")
    monkeypatch.undo()
    trainer = sft_trainer(trl.SFTTrainer, model, tokenizer, tmp_path)
    with pytest.raises(ValueError, match="trainer is a SFTTrainer, which asks for no log-prob"):
        lrk.trl.use_lrk_logprobs(trainer)
    trainer = SimpleNamespace(args=SimpleNamespace(), model=tiny_llama(tokenizer))
    with pytest.raises(ValueError, match=r"whose loss is not lrk's: call lrk\.patch"):
        lrk.trl.use_lrk_logprobs(trainer)
    trainer.args.cast_lm_head_to_fp32 = True
    with pytest.raises(ValueError, match="cast_lm_head_to_fp32 is true; lrk's log-prob"):
        lrk.trl.use_lrk_logprobs(trainer)

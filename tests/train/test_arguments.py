import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import yaml
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from lrk.train import LrkTrainingArguments, parse
from lrk.train.arguments.evaluation import evenly_spaced
from lrk.train.session import text_length


def test_every_argument_that_is_not_of_transformers_is_ours():
    stock = {item.name: item for item in fields(TrainingArguments)}
    changed = {
        item.name for item in fields(LrkTrainingArguments) if stock.get(item.name) is not item
    }
    own = LrkTrainingArguments.own_names()
    assert set(own) == changed
    assert len(own) == len(changed)
    added = [item.name for item in fields(LrkTrainingArguments) if item.name not in stock]
    assert [name for name in own if name not in stock] == added


def test_what_depends_on_other_arguments(arguments):
    made = arguments(target_length=1000, train_length=None)
    assert made.train_length == 300
    assert made.eval_lengths == [300, 1000]
    assert arguments(target_length=32).eval_lengths == [32]
    assert arguments(kernels={"rope": False}).kernels == {
        "rope": False,
        "attention": True,
        "cross_entropy": True,
    }


@pytest.mark.skipif(torch.accelerator.is_available(), reason="about machines without a GPU")
def test_bf16_is_used_where_the_processor_has_it(arguments, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert arguments(bf16=None).bf16 is True
    assert arguments(bf16=None).mixed_precision == "bf16"
    assert arguments(bf16=False).bf16 is False
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert arguments(bf16=None).bf16 is False
    assert arguments(bf16=True).bf16 is True


def test_every_flag_of_transformers_keeps_its_name(arguments):
    made = arguments(gradient_checkpointing=True, lr_scheduler_type="constant", seed=7)
    assert made.gradient_checkpointing
    assert made.lr_scheduler_type == "constant"
    assert made.seed == 7


def test_the_resolved_configuration_reads_back_to_the_same_arguments(arguments, tmp_path):
    made = arguments(
        kernels={"rope": False},
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": 1e-6},
        learning_rate=3e-5,
        report_to=["tensorboard"],
        eval_lengths=[64, 128],
        lora_rank=4,
        lora_targets=["q_proj", "v_proj"],
        overwrite_output_dir=True,
        tf32=None,
    )
    (tmp_path / "config.yaml").write_text(made.to_yaml())
    again = parse([str(tmp_path / "config.yaml")])
    assert made.to_dict() | {"overwrite_output_dir": False} == again.to_dict()
    assert again.to_yaml() == made.to_yaml()


def test_the_resolved_configuration_follows_later_changes(arguments):
    made = arguments()
    made.weight_decay = 0.1
    values = yaml.safe_load(made.to_yaml())
    assert values["weight_decay"] == 0.1
    assert "adam_beta1" not in values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_dir": None}, "output_dir is missing"),
        ({"train_length": 1}, "train_length is 1; it must be at least 2"),
        ({"target_length": 16}, "target_length is 16, shorter than train_length 32"),
        (
            {"position_method": "longrecip"},
            "position_method 'longrecip' is unknown; it must be one of contiguous, .*longrecipe, "
            ".*; did you mean 'longrecipe'",
        ),
        ({"eval_position_method": "posse"}, "eval_position_method 'posse' .* did you mean 'pose'"),
        ({"contiguous_share": 1.5}, "contiguous_share is 1.5; it must be between 0 and 1"),
        ({"dtype": "float23"}, "dtype 'float23' is unknown; .* did you mean 'float32'"),
        ({"kernels": {"atention": True}}, "kernels 'atention' .* did you mean 'attention'"),
        (
            {"kernels": {"attention": "flash_atention_2"}},
            "kernels.attention is 'flash_atention_2'; it must be true or false, or one of lrk, "
            "sdpa, flash_attention_2, .*; did you mean 'flash_attention_2'",
        ),
        ({"kernels": {"attention": 1}}, "kernels.attention is 1; it must be true or false, or one"),
        ({"kernels": {"rope": "lrk"}}, "kernels.rope is 'lrk'; it must be true or false$"),
        ({"kernels": {"rope": "false"}}, "kernels.rope is 'false'; it must be true or false$"),
        (
            {"kernels": {"attention": "sdpa"}, "pack": True},
            "pack is true with kernels.attention 'sdpa', which knows no documents: set pack to",
        ),
        (
            {"kernels": {"attention": False}},
            "kernels.attention is false with position_method 'longrecipe'.* use position_method "
            "'contiguous'",
        ),
        (
            {
                "kernels": {"attention": False},
                "position_method": "contiguous",
                "eval_lengths": [256],
            },
            r"kernels.attention is false with eval_lengths \[256\]",
        ),
        ({"eval_lengths": [16]}, r"eval_lengths is \[16\]; each must be at least train_length 32"),
        ({"lora_rank": -1}, "lora_rank is -1"),
        ({"lora_alpha": 32}, "lora_alpha is 32 with lora_rank 0; it is for adapters, so give"),
        ({"lora_dropout": 0.1}, "lora_dropout is 0.1 with lora_rank 0"),
        ({"lora_targets": "q_proj"}, "lora_targets is 'q_proj' with lora_rank 0"),
        (
            {"position_reach": 2.0, "contiguous_share": 1.0},
            "position_reach is 2.0 with contiguous_share 1.0; it is for positions that are spread",
        ),
        ({"pin_end": True, "contiguous_share": 1.0}, "pin_end is true with contiguous_share 1.0"),
        ({"upsample_factor": 3.0}, "upsample_factor is 3.0 without upsample_longer_than"),
        (
            {"impactful_weight": 3.0},
            "impactful_weight is 3.0 with token_loss 'plain'; it belongs to 'impactful'",
        ),
        (
            {"longce_max_weight": 9.0, "token_loss": "impactful", "impactful_tokens": "t.json"},
            "longce_max_weight is 9.0 with token_loss 'impactful'; it belongs to 'longce'",
        ),
        ({"longce_short_stride": 64}, "longce_short_stride is 64 with token_loss 'plain'"),
        ({"lora_dropout": 2.0}, "lora_dropout is 2.0"),
        ({"lora_rank": 4, "lora_dropout": 1.0}, "it must be at least 0 and below 1"),
        ({"lora_rank": 4, "lora_alpha": 0}, "lora_alpha is 0; it must be positive"),
        ({"lora_rank": 4, "lora_targets": []}, "it must name a module"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0; it must be positive"),
        ({"rope_scaling": "yam"}, "rope_scaling 'yam' is unknown.*yarn"),
        (
            {"rope_scaling": "yarn", "rope_theta": 1e6},
            "rope_theta is 1000000.0 with rope_scaling 'yarn'; it belongs to 'theta'",
        ),
        (
            {"rope_factors": "factors.json"},
            "rope_factors is 'factors.json' with rope_scaling 'theta'; it belongs to 'longrope'",
        ),
        (
            {"rope_scaling": "cope", "rope_critical_dimension": 3},
            "rope_critical_dimension is 3 with rope_scaling 'cope'; it belongs to 'ntk'",
        ),
        (
            {"rope_scaling": "ntk", "rope_critical_dimension": 0},
            "rope_critical_dimension is 0; it must be at least 1",
        ),
        ({"rope_scaling": "longrope"}, "rope_factors is missing"),
        (
            {"rope_scaling": "longrope", "rope_factors": "absent.json"},
            "rope_factors 'absent.json' cannot be read: No such file",
        ),
        ({"remove_unused_columns": True}, "remove_unused_columns must be false"),
        ({"use_liger_kernel": True}, "use_liger_kernel must be false"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is 0.1; it must be 0"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches must not be true"),
        (
            {"resume_from_checkpoint": "true", "overwrite_output_dir": True},
            "resume_from_checkpoint and overwrite_output_dir exclude each other",
        ),
    ],
    ids=str,
)
def test_values_that_no_run_can_have(arguments, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        arguments(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pack": "false"}, "pack is 'false', of type str; it must be bool"),
        ({"bf16": "no"}, "bf16 is 'no', of type str; it must be bool or None"),
        ({"streaming": 1}, "streaming is 1, of type int; it must be bool"),
        ({"use_cpu": "true"}, "use_cpu is 'true', of type str; it must be bool"),
        ({"gradient_checkpointing": "false"}, "gradient_checkpointing is 'false', of type str"),
        ({"resume_from_checkpoint": True}, "resume_from_checkpoint is True, of type bool"),
        ({"max_steps": 1.5}, "max_steps is 1.5, of type float; it must be int"),
        ({"max_steps": "2"}, "max_steps is '2', of type str; it must be int"),
        ({"learning_rate": "1e-5"}, "learning_rate is '1e-5', of type str; it must be float"),
        ({"data": "corpus.txt"}, "data is 'corpus.txt', of type str; it must be list"),
        ({"eval_lengths": ["64"]}, r"eval_lengths is \['64'\], of type list"),
        ({"kernels": True}, "kernels is True, of type bool; it must be dict"),
        ({"lora_targets": 5}, "lora_targets is 5, of type int; it must be str or list"),
        ({"position_method": None}, "position_method is None, of type NoneType; it must be str"),
        ({"rope_theta": float("inf")}, "rope_theta is inf; it must be finite"),
        ({"rope_theta": float("nan")}, "rope_theta is nan; it must be finite"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be finite"),
        ({"num_train_epochs": float("nan")}, "num_train_epochs is nan; it must be finite"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm is nan; it must be finite"),
        ({"warmup_steps": float("nan")}, "warmup_steps is nan; it must be finite"),
        ({"adam_beta2": float("inf")}, "adam_beta2 is inf; it must be finite"),
        ({"neftune_noise_alpha": float("nan")}, "neftune_noise_alpha is nan; it must be finite"),
        ({"data_shares": [float("nan")]}, r"data_shares is \[nan\]; it must be finite"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0; it must be 0 or positive"),
        ({"save_steps": -5}, "save_steps is -5.0; it must be 0 or positive"),
        ({"save_strategy": "steps", "save_steps": 0}, "save_steps is 0 with save_strategy"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size is 0; it must be at least"),
        ({"eval_accumulation_steps": 0}, "eval_accumulation_steps is 0; it must be at least 1"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers is -1; it must be at least 0"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"target_length": 2**31 + 1}, "target_length is 2147483649; it must be at most"),
        ({"position_reach": 1e300}, r"position_reach is 1e\+300 with target_length 256; their pr"),
        ({"eval_lengths": [2**31 + 1]}, r"eval_lengths is \[2147483649\]; each must be at most"),
        ({"eval_samples": -1}, "eval_samples is -1; it must be at least 0"),
    ],
    ids=str,
)
def test_types_and_ranges(arguments, changes, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        arguments(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deepspeed": "absent.json"}, "deepspeed is 'absent.json', which cannot be used: "),
        (
            {"accelerator_config": "absent.json"},
            "accelerator_config is 'absent.json', which cannot",
        ),
        ({"accelerator_config": {"a": 1}}, r"accelerator_config is {'a': 1}, .*unexpected keyword"),
    ],
    ids=str,
)
def test_what_transformers_cannot_open(arguments, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        arguments(**changes)
    assert "\n" not in str(caught.value)
    assert not is_deepspeed_zero3_enabled(), "of what is half made nothing is left in the process"


def test_arguments_can_be_made_of_those_that_were_made(arguments):
    """What transformers rewrites into its own objects is taken as it is."""
    made = arguments(report_to="tensorboard", debug="underflow_overflow", optim="sgd")
    assert replace(made, seed=3).to_dict() == made.to_dict() | {"seed": 3}


def test_what_python_counts_as_a_number_or_a_path_is_one(arguments, tmp_path):
    made = arguments(
        max_steps=np.int64(3), learning_rate=1, output_dir=tmp_path / "run", data=("a", "b")
    )
    assert (made.max_steps, made.learning_rate, made.data) == (3, 1.0, ["a", "b"])
    assert made.output_dir == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "metric"),
    [
        ({"load_best_model_at_end": True}, "eval_256_loss"),
        ({"save_strategy": "best"}, "eval_256_loss"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "eval_256_loss"),
        ({"load_best_model_at_end": True, "eval_lengths": [32, 128]}, "eval_128_loss"),
        ({"load_best_model_at_end": True, "metric_for_best_model": "32_loss"}, "32_loss"),
        ({}, None),
    ],
    ids=str,
)
def test_the_best_model_is_that_of_the_loss_at_the_target(arguments, corpus, changes, metric):
    made = arguments(
        **{
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "eval_data": [str(corpus / "held_out")],
        }
        | changes
    )
    assert made.metric_for_best_model == metric
    assert made.greater_is_better is (None if metric is None else False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"},
            "metric_for_best_model is 'accuracy'; it must be one of eval_32_loss, eval_256_loss",
        ),
        ({"load_best_model_at_end": True, "eval_strategy": "no"}, "eval_strategy is 'no', but lo"),
        ({"save_strategy": "best", "eval_lengths": []}, "eval_lengths is empty, but load_best"),
    ],
    ids=str,
)
def test_a_metric_that_no_evaluation_gives(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(**{"eval_strategy": "steps", "eval_steps": 1} | changes)


@pytest.mark.parametrize(
    ("count", "wanted", "chosen"),
    [(10, 4, [0, 3, 6, 9]), (3, 64, [0, 1, 2]), (3, 0, [0, 1, 2]), (9, 1, [0]), (2, 2, [0, 1])],
)
def test_samples_to_evaluate_on_are_spread_evenly(count, wanted, chosen):
    assert evenly_spaced(count, wanted) == chosen


def test_a_token_of_the_hub_is_written_nowhere(arguments):
    made = arguments(hub_token="hf_secret")
    assert made.hub_token == "hf_secret"
    pickled = pickle.dumps(made)
    assert b"hf_secret" not in pickled
    assert pickle.loads(pickled).hub_token is None
    assert "hub_token" not in made.to_yaml()


def test_arguments_at_their_defaults_are_not_given(arguments):
    assert arguments(lora_alpha=16, lora_targets="all-linear", upsample_factor=5.0).lora_rank == 0
    assert arguments(position_reach=1.0, contiguous_share=1.0).reach_length == 256
    assert arguments(attention_temperature=1.2, contiguous_share=1.0).attention_temperature == 1.2


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"dtype": "float23", "target_length": 16}, "target_length"),
        ({"dtype": "float23", "position_reach": 0.5}, "dtype"),
        ({"lora_rank": -1, "lora_dropout": 2.0}, "lora_dropout"),
        ({"load_in_4bit": True, "lora_alpha": 32}, "load_in_4bit"),
        ({"use_liger_kernel": True, "tile_tokens": -1}, "tile_tokens"),
    ],
    ids=str,
)
def test_the_first_of_several_faults_is_named(arguments, changes, first):
    with pytest.raises(ValueError, match=f"^{first} "):
        arguments(**changes)


def test_a_prompt_leaves_room_for_text(arguments, tokenizer):
    prompt = "Nobody crossed it."
    tokens = len(tokenizer.encode(prompt))
    options = {"position_method": "endprompt", "end_prompt": prompt}
    assert text_length(arguments(**options, train_length=tokens + 2), tokenizer) == 2
    sentence = f"end_prompt has {tokens} tokens with train_length {tokens + 1}; it must leave at le"
    with pytest.raises(ValueError, match=sentence):
        text_length(arguments(**options, train_length=tokens + 1), tokenizer)

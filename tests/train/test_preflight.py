"""What only the first step would import or refuse is refused before data are prepared."""

import importlib.util

import pytest

from lrk.train.dry_run import dry_run
from lrk.train.preflight import check_late_parts
from lrk.train.pretrained import load_config
from lrk.train.session import set_up


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@pytest.mark.skipif(is_installed("torchao"), reason="torchao is installed")
@pytest.mark.parametrize("start", [dry_run, set_up])
def test_the_optimizer_of_the_presets_says_what_to_install(arguments, start, monkeypatch):
    def read(*args):
        raise AssertionError("data were read")

    monkeypatch.setattr("lrk.train.session.load_samples", read)
    monkeypatch.setattr("lrk.train.dry_run.load_samples", read)
    with pytest.raises(ValueError, match=r"optim 'adamw_torch_8bit' .*`pip install .torchao>="):
        start(arguments(optim="adamw_torch_8bit"))


@pytest.mark.parametrize("reporter", ["wandb", "mlflow", "trackio", "comet_ml", "clearml"])
def test_a_reporter_says_what_to_install(arguments, reporter):
    if is_installed(reporter):
        pytest.skip(f"{reporter} is installed")
    made = arguments(report_to=["tensorboard", reporter])
    with pytest.raises(ValueError, match=f"report_to has '{reporter}', .*pip install") as caught:
        check_late_parts(made, load_config(made))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"torch_compile_backend": "x"},
            "torch_compile_backend is 'x'; it must be one of .*inductor",
        ),
        ({"report_to": "wandbb"}, "report_to has 'wandbb', which cannot run: .*only .*wandb"),
        ({"adam_beta1": 1.5}, "optim 'adamw_torch_fused' cannot run: .*1.5"),
        ({"adam_epsilon": -1.0}, "optim 'adamw_torch_fused' cannot run: .*-1.0"),
        ({"optim": "galore_adamw"}, "optim 'galore_adamw' cannot run"),
        ({"lr_scheduler_kwargs": {"a": 1}}, "'linear' with lr_scheduler_kwargs .* cannot run: "),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "lr_scheduler_type 'cosine_with_min_lr' .* cannot run: ",
        ),
    ],
    ids=str,
)
def test_what_they_refuse_is_a_sentence(arguments, changes, message):
    made = arguments(**changes)
    with pytest.raises(ValueError, match=message) as caught:
        check_late_parts(made, load_config(made))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optim": "adafactor", "lr_scheduler_type": "cosine", "report_to": "tensorboard"},
        {"optim": "sgd", "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3},
        {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr": 1e-6},
            "max_steps": -1,
        },
    ],
    ids=str,
)
def test_what_runs_passes(arguments, changes):
    made = arguments(**changes)
    check_late_parts(made, load_config(made))

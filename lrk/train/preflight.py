"""What a run makes late, made once before it begins: optimizer, schedule, reporters.

They come from packages that are imported when training starts, and they check their arguments then.
By that time data are prepared, weights are loaded, and the output folder holds a run.
"""

import torch
from accelerate.utils import DynamoBackend
from torch import nn
from torch.optim import Optimizer
from transformers import PretrainedConfig, Trainer, get_scheduler
from transformers.integrations.integration_utils import (
    get_reporting_integration_callbacks,
    is_mlflow_available,
)

from lrk.pretrained import meta_model
from lrk.train.arguments import LrkTrainingArguments
from lrk.versions import pip_install

_TORCHAO = ("adamw_torch_8bit", "adamw_torch_4bit")
_HOLD_THE_MODEL = ("lomo", "adalomo")
_UNKNOWN_STEPS = 1000

# What is raised where a package is missing, or does not take its arguments.
_REFUSALS = (ImportError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError)


def check_late_parts(arguments: LrkTrainingArguments, config: PretrainedConfig) -> None:
    """Make the optimizer, its schedule and the reporters of a run, and drop them.

    Raises:
        ValueError: with what to install, or what they say of their arguments.
    """
    optim = str(arguments.to_dict()["optim"])
    try:
        optimizer = _optimizer(arguments, optim, config)
    except _REFUSALS as error:
        install = f"; `{pip_install('torchao')}`" if optim in _TORCHAO else ""
        raise ValueError(f"optim {optim!r} cannot run: {_line(error)}{install}") from error
    try:
        _check_schedule(arguments, optimizer)
    except _REFUSALS as error:
        raise ValueError(
            f"lr_scheduler_type {arguments.to_dict()['lr_scheduler_type']!r} with "
            f"lr_scheduler_kwargs {arguments.lr_scheduler_kwargs} cannot run: {_line(error)}"
        ) from error
    backend = str(arguments.torch_compile_backend)
    if arguments.torch_compile and backend.upper() not in DynamoBackend.__members__:
        known = ", ".join(name.lower() for name in DynamoBackend.__members__)
        raise ValueError(f"torch_compile_backend is {backend!r}; it must be one of {known}")
    for name in arguments.report_to or []:
        try:
            (kind,) = get_reporting_integration_callbacks([name])
            if name == "mlflow" and not is_mlflow_available():
                # Half made, it would print a traceback of its destructor.
                raise ImportError("`pip install mlflow`")
            kind()
        except _REFUSALS as error:
            raise ValueError(f"report_to has {name!r}, which cannot run: {_line(error)}") from error


def _optimizer(arguments: LrkTrainingArguments, optim: str, config: PretrainedConfig) -> Optimizer:
    """As the trainer makes it, of a single parameter."""
    by_model = optim in _HOLD_THE_MODEL or arguments.optim_target_modules is not None
    model = meta_model(config) if by_model else None
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    parameters = [nn.Parameter(torch.zeros(1))]
    return torch.optim.SGD(parameters) if by_model else kind(parameters, **options)


def _check_schedule(arguments: LrkTrainingArguments, optimizer: Optimizer) -> None:
    """Make it, and ask it for a learning rate in mid-run."""
    steps = arguments.max_steps if arguments.max_steps > 0 else _UNKNOWN_STEPS
    schedule = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=arguments.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,  # type: ignore[arg-type]
    )
    for rate in getattr(schedule, "lr_lambdas", []):
        rate(steps // 2)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())

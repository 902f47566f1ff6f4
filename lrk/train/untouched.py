"""The model as it was before the run: what is evaluated before the first step.

Until then nothing of it has changed but its RoPE, which the run has stretched, and adapters, which
begin as nothing. So its own RoPE, put back for an evaluation, is the model before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from lrk.train.interruption import EvaluationStopped, InterruptibleSteps


@contextmanager
def own_rope(model: nn.Module, config: PretrainedConfig) -> Iterator[None]:
    """The RoPE of another config in a block.

    Args:
        config: of the text model as it was, of the same class as it is now.
    """
    held = [
        (module, rotary)
        for module in model.modules()
        if (rotary := getattr(module, "rotary_emb", None)) is not None
        and type(rotary.config) is type(config)
    ]
    for module, rotary in held:
        device = next(rotary.buffers()).device
        module.rotary_emb = type(rotary)(config=config).to(device)
    try:
        yield
    finally:
        for module, rotary in held:
            module.rotary_emb = rotary


class EvaluatesUntouched(InterruptibleSteps):
    """Evaluates the model before the first step, where `eval_on_start` says so.

    Attributes:
        untouched: config of the text model before its RoPE was stretched, or None where it is as it
            was.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.untouched: PretrainedConfig | None = None

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False
    ) -> dict[str, float]:
        evaluated = partial(super()._evaluate, trial, ignore_keys_for_eval, skip_scheduler)
        # transformers skips the scheduler before the first step, and then alone.
        if not skip_scheduler:
            return evaluated()
        if self.state.global_step > 0:  # a run that goes on
            return {}
        try:
            if self.untouched is None:
                return evaluated()
            with own_rope(self.model, self.untouched):  # type: ignore[arg-type]
                return evaluated()
        except EvaluationStopped:  # the first step ends the run, with a checkpoint
            return {}

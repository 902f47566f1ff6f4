"""Short-context abilities (MMLU, GSM8K, ...) by lm-eval's own tasks, with the patched model.

A longer window is worth little if it costs what the model could do before. lm-eval is not one of
lrk's dependencies, and it downloads its data sets.
"""

import importlib.util
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def require_lm_eval() -> None:
    """Raise `ValueError` if lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("lm_eval_tasks needs the package lm-eval: pip install lm-eval")


def run_lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    batch_size: int,
    seed: int,
    chat_template: bool,
    folder: str | None = None,
) -> dict[str, Any]:
    """The metrics of one task or group of lm-eval, under the names that lm-eval gives them.

    Args:
        task: its name, as `lm_eval --tasks list` prints them.
        folder: with YAML files of more tasks, as `lm_eval --include_path` takes it.

    Returns:
        `results`, `versions` and `n-samples` of `lm_eval.simple_evaluate`.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    found = lm_eval.simple_evaluate(
        model=wrapped,
        tasks=[task],
        task_manager=TaskManager(include_path=folder),
        apply_chat_template=chat_template,
        log_samples=False,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return {key: found[key] for key in ("results", "versions", "n-samples")}

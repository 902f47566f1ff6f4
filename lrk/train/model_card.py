"""The README.md of a trained model: what was done, what was measured, and what was not."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import PretrainedConfig

from lrk.hf.distillation import NONE
from lrk.merge.rules import Rule
from lrk.rope_scaling import rope_description
from lrk.train.arguments import PLAIN, LrkTrainingArguments
from lrk.train.engine import engine_of
from lrk.train.evaluations import losses_by_step
from lrk.train.new_distances import NewDistances
from lrk.train.steps import samples_a_step

MARK = "<!-- written by lrk-train; without this line lrk-train leaves the file alone -->"

Rows = Sequence[dict[str, Any]]


def model_card(
    arguments: LrkTrainingArguments,
    config: PretrainedConfig,
    history: Rows,
    base_model: str | None,
    new_distances: NewDistances | None = None,
    stretches: bool = True,
    window_before: int | None = None,
) -> str:
    """Markdown with the metadata that the Hugging Face hub reads.

    Args:
        arguments: of the run.
        config: of the trained model.
        history: what was logged, rows with a `step`.
        base_model: folder or hub name of what the run extends; in a stage that of the first one.
        new_distances: what the run trained beyond the window that it began with.
        stretches: whether the run changed RoPE.
        window_before: of the model that the run began with, in tokens.
    """
    lines = [
        *_metadata(arguments.position_method, base_model),
        MARK,
        "",
        *_how(arguments, config, history, base_model, new_distances, stretches, window_before),
        "",
        *_load(arguments),
        "",
        *_measured(arguments, history),
        "",
        *_not_measured(arguments),
        "",
        "## Arguments",
        "",
        "```yaml",
        arguments.to_yaml().strip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def merge_card(
    arguments: LrkTrainingArguments,
    config: PretrainedConfig,
    history: Rows,
    base_model: str,
    models: Sequence[str],
    rule: Rule,
) -> str:
    """The same of a merged model.

    Args:
        arguments: of its evaluation.
        config: of the merged model.
        history: what its evaluation logged.
        base_model: as in `model_card`.
        models: names of what was merged.
        rule: by which.
    """
    lines = [
        *_metadata("merge", base_model),
        MARK,
        "",
        f"# {Path(arguments.output_dir or '').name}",
        "",
        f"{base_model}, extended to a window of {config.max_position_embeddings:,} tokens and "
        f"merged by lrk-train: {', '.join(models)}, by `lrk.merge.{rule}`. The cards of the stages "
        "before it say how these were trained. Its licence is that of the base model.",
        "",
        *_load(arguments),
        "",
        *_measured(arguments, history),
        "",
        *_not_measured(arguments),
        "",
    ]
    return "\n".join(lines)


def _metadata(method: str, base_model: str | None) -> Iterator[str]:
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lrk", "long-context", method],
    }
    if base_model and not Path(base_model).exists():  # a name on the hub
        metadata["base_model"] = base_model
    yield "---"
    yield yaml.safe_dump(metadata, sort_keys=False).strip()
    yield "---"


def _how(
    arguments: LrkTrainingArguments,
    config: PretrainedConfig,
    history: Rows,
    base_model: str | None,
    new_distances: NewDistances | None,
    stretches: bool,
    window_before: int | None,
) -> Iterator[str]:
    base = base_model or "a model that the caller had at hand"
    start = arguments.model_name_or_path
    from_stage = f", here from `{Path(start).name}` on" if start and start != base_model else ""
    steps = max((row["step"] for row in history), default=0)
    batch, engine = samples_a_step(arguments), engine_of(arguments)
    name = Path(arguments.output_dir or "").name
    trained = f"LoRA of rank {arguments.lora_rank}, merged" if arguments.lora_rank else "all"
    yield f"# {name}"
    yield ""
    yield (
        f"{base}, trained by lrk-train for a window of {config.max_position_embeddings:,} tokens"
        f"{from_stage}. Its licence is that of the base model."
    )
    yield ""
    yield "| | |"
    yield "|---|---|"
    if window_before is not None:
        yield f"| window before | {window_before:,} |"
    yield f"| positions | {arguments.position_method}, below {arguments.reach_length:,} |"
    yield f"| softmax temperature of attention in training | {arguments.attention_temperature:g} |"
    if arguments.token_loss != PLAIN:
        yield f"| tokens weighed in training by | {arguments.token_loss} |"
    if arguments.distill != NONE:
        yield f"| self-distillation | {arguments.distill}, weight {arguments.distill_weight:g} |"
    yield f"| samples in ordinary positions | {arguments.contiguous_share:.0%} |"
    if new_distances is not None:
        yield f"| beyond the window before | {new_distances} |"
    yield f"| real tokens of a sample | {arguments.train_length:,} |"
    yield f"| samples a step | {batch:,} |"
    if engine.processes > 1:
        yield f"| engine | {engine} |"
    yield f"| steps | {steps:,} |"
    yield f"| tokens in all | {steps * batch * arguments.train_length:,} |"
    yield f"| trained parameters | {trained} |"
    plan = arguments.rope_scaling if stretches else "none: the model's own"
    yield f"| rope_scaling | {plan} |"
    yield f"| RoPE | {rope_description(config)} |"


def _load(arguments: LrkTrainingArguments) -> Iterator[str]:
    """For any program that knows transformers; nothing of lrk is needed."""
    name = arguments.hub_model_id or arguments.output_dir
    yield "## Load"
    yield ""
    yield "```python"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield f'model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")'
    yield f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
    yield "```"
    yield ""
    yield "The window and its RoPE are in `config.json`: nothing else is to be set."


def _measured(arguments: LrkTrainingArguments, history: Rows) -> Iterator[str]:
    yield "## Measured"
    yield ""
    losses = [(row["step"], row["loss"]) for row in history if "loss" in row]
    by_step = losses_by_step(history)
    evaluations: dict[int, list[tuple[int, float]]] = {}
    for step, found in sorted(by_step.items()):
        for length, value in found.items():
            evaluations.setdefault(length, []).append((step, value))
    if not losses and not evaluations:
        yield "Nothing."
        return
    yield "Mean loss in nats a token."
    yield ""
    yield "| | first | last |"
    yield "|---|---|---|"
    if losses:
        weighed = "" if arguments.token_loss == PLAIN else f", weighed by {arguments.token_loss}"
        weighed += "" if arguments.distill == NONE else ", with the divergence from the teacher"
        yield f"| training{weighed} | {_at_step(losses[0])} | {_at_step(losses[-1])} |"
    for length, points in sorted(evaluations.items()):
        yield (
            f"| held-out, simulated length {length:,} | {_at_step(points[0])} | "
            f"{_at_step(points[-1])} |"
        )
    if evaluations:
        yield ""
        yield (
            f"A simulated length spreads {arguments.train_length:,} real tokens over so many "
            "positions. It is not a text of that length."
        )
    if losses and 0 in by_step:
        yield ""
        yield "Step 0 is the model before training, with the RoPE that it came with."


def _at_step(point: tuple[int, float]) -> str:
    return f"{point[1]:.4f} (step {point[0]:,})"


def _not_measured(arguments: LrkTrainingArguments) -> Iterator[str]:
    yield "## Not measured by lrk-train"
    yield ""
    yield (
        f"- Texts of more than {arguments.train_length:,} real tokens: no loss, no retrieval "
        "(passkey, needle in a haystack, RULER), no generation."
    )
    yield "- What the model still does at short lengths beyond these losses (MMLU, GSM8K, code)."
    yield "- Safety and bias, which can differ from the base model's."
    if not arguments.eval_data:
        yield "- Any loss on held-out text: the run had no `eval_data`."

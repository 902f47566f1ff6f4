"""docs/recipes.md: the rules as a page, each with what it rests on, made of the evidence."""

from collections.abc import Iterator, Sequence
from textwrap import fill

from lrk.plan.configs import load_config
from lrk.train.auto_recipe import rules, schedule
from lrk.train.auto_recipe.evidence import Evidence
from lrk.train.auto_recipe.ladder import rungs
from lrk.train.auto_recipe.recipe import Recipe, Subject, make_recipe
from lrk.train.auto_recipe.survey import DOCUMENTS
from lrk.train.card import card_of

CONFIGURATIONS = (
    ("llama-3-8b", 131_072, "h100"),
    ("qwen3-8b", 131_072, "h100"),
    ("mistral-7b-v0.3", 131_072, "h100"),
    ("olmo-3-7b", 131_072, "h100"),
    ("llama-3-8b", 131_072, "rtx4090"),
)
"""Configs of `lrk-plan`, target, card."""

_HEAD = """\
# What do I run?

<!-- `python -m lrk.train.auto_recipe` writes this page from the evidence: edit its code. -->

```bash
lrk-train --recipe auto --model_name_or_path meta-llama/Meta-Llama-3-8B --gpu h100 \\
    --data my-documents.jsonl --target_length 131072 --output_dir outputs/llama
lrk-train outputs/llama/recipe.yaml --dry_run
lrk-train outputs/llama/recipe.yaml
```

The first command trains nothing. It reads the model's config and some of the data, plans steps for
the card (`--gpu`, one of `lrk-plan`'s; without it the one of this machine), prints each choice with
its reason, and writes the YAML (`--recipe_file`; `OUTPUT_DIR/recipe.yaml` unless given, which no
run takes for another run's). Every other key of `lrk-train` may be given, in a file too, and beats
the choice. A file that is there already is not replaced, and `--dry_run` writes none.
"""

_FACTS = """\
## What follows from model and data

Not measured: these follow from what the code can do.

| where | then |
|---|---|
| `target_length` is within the model's window | nothing to extend: refused |
| no layer sees positions beyond the window (`layer_types`, `no_rope_layers`, `sliding_window`) | positions that skip would train nothing: samples of full length |
| some layers do not see positions | said: they are trained for a sample's own length ([training.md](training.md#before-the-first-step)) |
| the model has RoPE of type `yarn`, `llama3` or `linear` | the same type, stretched further |
| the stretched RoPE has an attention factor (yarn, longrope) | no `attention_temperature`: both do the same in part ([proof.md](proof.md#reach-and-temperature)) |
| the data are conversations | an annealing stage: ordinary positions, LongRecipe's rate and tokens |
| few documents (the first {documents} are looked at) are as long as a sample | said: `lrk-data assemble` ([data.md](data.md)) |
| another factor than {times:g} | said: not measured |

`train_length` is 30 % of the target, and of `cream` and `e2` the window. Forward pass, step and run
take as many tokens as LongRecipe's ({sample:,}, {step:,} and {steps} steps; 2409.00509, 4.1) as far
as the data reach: at most a pass over them a step and {passes} passes a run (2305.16264). Learning
rate and schedule are LongRecipe's too, and for models below {small:,} parameters those of the preset
of SmolLM2-135M.
"""  # noqa: E501


def page(evidence: Evidence) -> str:
    """The whole page. The last section plans steps, which takes a minute or two."""
    return rules_part(evidence) + configurations_part(evidence)


def rules_part(evidence: Evidence) -> str:
    """What follows from the evidence, and from the code."""
    found = rules.findings(evidence)
    names = list(dict.fromkeys(name for each in found for name in each.evidence))
    facts = _FACTS.format(
        documents=DOCUMENTS,
        times=rules.TARGET,
        sample=schedule.TOKENS_A_SAMPLE,
        step=schedule.TOKENS_A_STEP,
        steps=schedule.STEPS,
        passes=schedule.PASSES,
        small=schedule.SMALL,
    )
    return "\n".join(
        [
            _HEAD,
            *("## What the studies say", ""),
            fill(f"{rules.LIMITS} Made by `{evidence.made_by}` ([proof.md](proof.md)).", 100),
            "",
            "| question | choice | why | rests on |",
            "|---|---|---|---|",
            *(
                f"| {each.question} | {_value(each.value)} | {each.reason} | "
                f"{_numbers(each.evidence, names)} |"
                for each in found
            ),
            "",
            "| | row or comparison | result |",
            "|---|---|---|",
            *(f"| {n} | {name} | {evidence.named(name)} |" for n, name in enumerate(names, 1)),
            "",
            fill(_rules_in_words(), 100),
            "",
            facts,
            *_ladder(),
            "",
            "",
        ]
    )


def configurations_part(evidence: Evidence) -> str:
    """What the rules make of some configs of `lrk-plan`, planned here."""
    lines = [
        "## Five configurations",
        "",
        "Data of any kind of long text; GiB and seconds are planned, not measured.",
        "",
        "| model | card | " + " | ".join(_COLUMNS) + " | memory | GiB |",
        "|---|---|" + "---|" * len(_COLUMNS) + "---|---|",
    ]
    for model, target, card in CONFIGURATIONS:
        given = {"model_name_or_path": model, "data": ["my.jsonl"], "output_dir": "outputs/run"}
        subject = Subject(model, load_config(model), target, card_of(card))
        lines.append(_row(make_recipe(subject, evidence, given, compares_full_length=False)))
    return "\n".join(lines) + "\n"


_COLUMNS = (
    "train_length",
    "position_method",
    "position_reach",
    "attention_temperature",
    "rope_scaling",
    "distill",
)


def _row(recipe: Recipe) -> str:
    subject, values, taken = recipe.subject, recipe.values, recipe.tried[-1]
    assert taken.plan is not None
    window = f"{subject.model}, {subject.window:,} -> {subject.target:,}"
    chosen = " | ".join(_value(values.get(name, "")) for name in _COLUMNS)
    return (
        f"| {window} | {subject.card.name} | {chosen} | {taken.rung.name} | "
        f"{taken.plan.device_gib:.1f} |"
    )


def _rules_in_words() -> str:
    return (
        f"The sampler is the one with the best mean over the tasks of study `{rules.PROOF}` at "
        f"{rules.TARGET:g} times the window, each in its best variant. Reach and temperature are "
        f"each taken if at {rules.TARGET:g} or {rules.BEYOND:g} times a task gains by them and "
        f"none loses (corrected p below {rules.SIGNIFICANT:g}), and if real text within the window "
        f"loses no more than {rules.SHORT_LOSS_NATS:g} nats by them. Full length is taken "
        f"if it is better by more than {rules.MARGIN_POINTS:g} points (low end of the interval) "
        f"and reads real text better by more than {rules.TEXT_NATS:g} nats; "
        "where it is ahead by less, the recipe says what it would cost. Self-distillation has to "
        f"bring {rules.VIEWS_POINTS:g} points on the hardest task. Of the RoPE plans whose "
        f"interval reaches the best at {rules.TARGET:g} times, the best at {rules.BEYOND:g} times "
        "is taken, and `theta` where it is level. Other results change these choices by a run of "
        "`python -m studies.evidence`, not by an edit of the code."
    )


def _ladder() -> Iterator[str]:
    yield "## Memory"
    yield ""
    yield fill(
        "Steps are planned ([memory.md](memory.md)) rung by rung, from cheap to dear, and the "
        "first that fits is taken. What is given stands in all of them; where weights, gradients "
        "and optimizer alone are too large nothing is traced. If none fits, the smallest plan is "
        "named, and [scale.md](scale.md).",
        100,
    )
    yield ""
    yield "| | techniques | costs beside FLOPs |"
    yield "|---|---|---|"
    for number, rung in enumerate(rungs({"train_length": 39_322}), 1):
        yield f"| {number} | {rung.name} | {rung.costs} |"


def _numbers(evidence: Sequence[str], names: Sequence[str]) -> str:
    return ", ".join(str(names.index(name) + 1) for name in evidence)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)

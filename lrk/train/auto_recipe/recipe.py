"""A recipe: what one model is trained with on some data and one card, and why."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import wrap
from typing import Any

import yaml
from transformers import PretrainedConfig

from lrk.frequencies import frequencies_of, rope_layer_types, rope_parameters
from lrk.hf.architectures import text_config
from lrk.plan.gpus import EFFICIENCY
from lrk.pretrained import meta_model
from lrk.rope_factors import read_rope_factors
from lrk.rope_scaling import RopePlan
from lrk.train.arguments import TRAIN_SHARE, without_secrets
from lrk.train.auto_recipe import rules
from lrk.train.auto_recipe.choices import GIVEN, Choice, Choices, grouped
from lrk.train.auto_recipe.evidence import Evidence
from lrk.train.auto_recipe.ladder import Tried, climb, fits
from lrk.train.auto_recipe.schedule import choose_schedule
from lrk.train.auto_recipe.survey import Survey
from lrk.train.card import Card
from lrk.train.extension import extend_config
from lrk.train.reached_layers import ReachedLayers, reached_layers
from lrk.versions import pip_install

FEW_LONG = 0.1
"""Share of the text in documents of a whole sample, below which assembling is worth a look."""
ACTIONS = ("dry_run", "overwrite_output_dir", "resume_from_checkpoint")


@dataclass(frozen=True)
class Subject:
    """What is to be extended.

    Attributes:
        model: name or path.
        config: its config.
        target: window to reach.
        data: how long the documents are, where it is known.
        card: that the run is for.
    """

    model: str
    config: PretrainedConfig
    target: int
    card: Card
    data: Survey | None = None

    @property
    def window(self) -> int:
        """Of the model as it is."""
        return text_config(self.config).max_position_embeddings

    @property
    def times(self) -> float:
        return self.target / self.window

    @property
    def layers(self) -> ReachedLayers:
        return reached_layers(self.config, self.window)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in meta_model(self.config).parameters())


@dataclass(frozen=True)
class Recipe:
    """Choices for a subject.

    Attributes:
        choices: in the order in which they were made.
        notes: sentences on what to mind.
        tried: rungs of the ladder; the last one is taken.
        made_by: of the evidence.
    """

    subject: Subject
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]
    tried: tuple[Tried, ...]
    made_by: str

    @property
    def values(self) -> dict[str, Any]:
        return {choice.name: choice.value for choice in self.choices}

    @property
    def title(self) -> str:
        subject = self.subject
        return (
            f"{subject.model}, {subject.window:,} -> {subject.target:,} tokens "
            f"({subject.times:.3g} times), on one {subject.card.name} of {subject.card.gib:.1f} GiB"
        )

    def __str__(self) -> str:
        lines = [self.title, f"Evidence: {self.made_by}", *_wrapped(rules.LIMITS, "")]
        for group in grouped(each for each in self.choices if without_secrets({each.name: 0})):
            lines += ["", *(f"{choice.name}: {_written(choice.value)}" for choice in group)]
            lines += _reason(group[0], "    ")
        lines += ["", "Memory of a step, planned (docs/memory.md)"]
        lines += [line for said in _climbed(self.tried) for line in _wrapped(said, "    ", "  ")]
        if self.notes:
            lines += ["", "Mind"]
            for note in self.notes:
                lines += _wrapped(note, "    ", "  - ")
        return "\n".join(lines)

    def to_yaml(self, command: str) -> str:
        """The file that `lrk-train` runs: each key below its reason; without secrets.

        Args:
            command: that runs it, for its head.
        """
        lines = [f"# {self.title}:", "# chosen by lrk-train --recipe auto (docs/recipes.md)."]
        lines += [f"#   {command}", f"# Evidence: {self.made_by}", *_wrapped(rules.LIMITS, "# ")]
        kept = without_secrets(self.values)
        written = [each for each in self.choices if each.name in kept and each.name not in ACTIONS]
        for group in grouped(written):
            content = {choice.name: choice.value for choice in group}
            dumped = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
            lines += ["", *_reason(group[0], "# "), dumped.rstrip("\n")]
        return "\n".join(lines) + "\n"


def make_recipe(
    subject: Subject,
    evidence: Evidence,
    given: Mapping[str, Any],
    compares_full_length: bool = True,
) -> Recipe:
    """Choose everything that is not given.

    Args:
        given: arguments of `lrk-train` in their types, model, data and folder among them.
        compares_full_length: note what samples of full length cost on the card, where the evidence
            has them ahead: as many plans again.

    Raises:
        ValueError: if there is nothing to extend, data hold no sample, no step fits the card, or
            the evidence lacks rows.
    """
    choices = Choices(given)
    for name in ("model_name_or_path", "gguf_file", "data", "output_dir"):
        if name in given:
            choices.make(name, given[name], GIVEN)
    choices.make("target_length", subject.target, GIVEN)
    anneals = subject.data is not None and not subject.data.is_text
    if not anneals:
        _check_extends(subject, given)
    notes = list(_notes_on(subject, anneals))
    studied = _choose_positions(choices, subject, evidence, anneals, notes)
    length = choices.values["train_length"]
    tokens = None if subject.data is None else subject.data.tokens
    if tokens is not None and tokens < length:
        raise ValueError(
            f"data hold {tokens:,} tokens together, but one sample of train_length needs {length:,}"
        )
    choose_schedule(choices, length, tokens, subject.parameters, anneals)
    notes += _notes_on_data(subject, choices.values)
    values = {k: v for k, v in choices.values.items() if k not in ACTIONS}
    tried = climb(subject.model, subject.config, values, given, subject.card)
    if not fits(tried[-1], subject.card):
        raise ValueError(_nothing_fits(subject, tried))
    taken = tried[-1]
    planned = taken.plan
    assert planned is not None
    reason = (
        f"{taken.rung.name}: {planned.device_gib:.1f} of {subject.card.gib:.1f} GiB, the first "
        "rung that fits"
    )
    reason += f"; {taken.rung.costs}" if taken.rung.costs else ""
    for name, value in taken.rung.values.items():
        choices.make(name, value, reason)
    if "lora_rank" in taken.rung.values:
        notes.append(
            f"full parameters do not fit, so adapters are trained ({taken.rung.name}); more cards "
            "train all of them: docs/scale.md"
        )
    if choices.values.get("optim") == "adamw_torch_8bit":
        notes.append(f"the 8-bit optimizer needs `{pip_install('torchao')}`")
    if compares_full_length and studied is not None and rules.is_ahead(evidence, studied):
        notes.append(_beside_full_length(subject, choices, evidence, studied, tried[-1]))
    return Recipe(subject, tuple(choices), tuple(notes), tuple(tried), evidence.made_by)


def _check_extends(subject: Subject, given: Mapping[str, Any]) -> None:
    if subject.target > subject.window or "rope_theta" in given:
        return
    raise ValueError(
        f"target_length is {subject.target:,}, and the model has a window of {subject.window:,} "
        "already: there is nothing to extend; give a longer target_length, conversations for an "
        "annealing stage, or, where the config says more than the model was pretrained on (as that "
        "of Qwen2-7B does), the rope_theta of its preset, qwen2-7b-131072"
    )


def _notes_on(subject: Subject, anneals: bool) -> Iterator[str]:
    times = subject.times
    if times <= 1 and not anneals:
        yield (
            f"the config has a window of {subject.window:,} already, and rope_theta is given: the "
            "model is taken for one that was pretrained on less, and new distances are not counted"
        )
    if times > 1 and not math.isclose(times, rules.TARGET):
        yield (
            f"the studies extend {rules.TARGET:g} times, and this is {times:.3g} times: other "
            f"factors are {rules.NOT_MEASURED}"
        )
    if anneals and times > 1:
        yield (
            "the data are conversations, with which ordinary positions are trained: an annealing "
            "stage, which extends nothing by itself; extend on long texts first, and give its "
            "folder as model_name_or_path here (docs/training.md, Stages)"
        )
    if subject.layers.warning is not None and times > 1:
        yield subject.layers.warning


def _choose_positions(
    choices: Choices, subject: Subject, evidence: Evidence, anneals: bool, notes: list[str]
) -> str | None:
    """Choose method, length, reach, temperature, share, RoPE and distillation.

    Returns:
        The method as the studies name it; None where they do not have it.
    """
    found = rules.sampler(evidence)
    studied: str | None = None
    if anneals:
        reason = "replay of conversations keeps ordinary positions (docs/training.md, Stages)"
        method = choices.make("position_method", "contiguous", reason)
    elif subject.layers.reached == 0:
        reason = f"{subject.layers.obstacle}; samples of full length are what is left"
        method = choices.make("position_method", "contiguous", reason)
        if not subject.layers.blind:
            notes.append(
                "every layer has a sliding window, so none sees a new distance in longer texts "
                "either: read the model at the target first (lrk-eval), training may bring nothing"
            )
    else:
        full = rules.full_length(evidence, rules.method_of(evidence, found.value))
        wanted = "contiguous" if full.value else rules.SAMPLERS[found.value]
        because = full if full.value else found
        method = choices.make("position_method", wanted, because.reason, *because.evidence)
        names = [name for name, each in rules.SAMPLERS.items() if each == method]
        spreads = choices.given.get("contiguous_share", 0) < 1
        studied = names[0] if names and spreads else None
    length = _choose_length(choices, subject, method, anneals)
    _choose_rope(choices, subject, evidence)
    if studied is None:
        if method != "contiguous":
            choices.make(
                "contiguous_share", rules.SHARE, f"{rules.NOT_MEASURED}; lrk-train's default"
            )
        return None
    studied = _choose_spread(choices, subject, evidence, studied, length)
    share = rules.contiguous_share(evidence, studied)
    choices.make("contiguous_share", share.value, share.reason, *share.evidence)
    distilled = rules.views(evidence, studied)
    choices.make(
        "distill", "views" if distilled.value else "none", distilled.reason, *distilled.evidence
    )
    return studied


def _choose_length(choices: Choices, subject: Subject, method: str, anneals: bool) -> int:
    if anneals:
        wanted = min(subject.window, round(TRAIN_SHARE * subject.target))
        reason = f"{TRAIN_SHARE:.0%} of the target, within the window"
    elif method == "contiguous":
        wanted, reason = subject.target, "ordinary positions reach the target in samples as long"
    elif method in rules.WITHIN_WINDOW:
        wanted = min(subject.window, subject.target)
        reason = f"the window, as the paper of {method} has it and the studies do"
    else:
        wanted = round(TRAIN_SHARE * subject.target)
        reason = (
            f"{TRAIN_SHARE:.0%} of the target, as in the studies and LongRecipe; other shares are "
            f"{rules.NOT_MEASURED}"
        )
    return choices.make("train_length", max(wanted, 2), reason)


def _choose_rope(choices: Choices, subject: Subject, evidence: Evidence) -> None:
    own = {
        rope_parameters(subject.config, kind).get("rope_type", "default")
        for kind in rope_layer_types(subject.config)
    } - {"default", "dynamic"}
    given = choices.given
    if "rope_factors" in given:
        choices.make("rope_scaling", "longrope", "rope_factors are given")
    elif "rope_critical_dimension" in given:
        choices.make("rope_scaling", "ntk", "rope_critical_dimension is given")
    elif "rope_theta" in given:
        choices.make("rope_scaling", "theta", "rope_theta is given")
    elif subject.times <= 1:
        return
    elif own & {"yarn", "llama3", "linear"}:
        kind = min(own & {"yarn", "llama3", "linear"})
        reason = f"the model's own kind of RoPE, stretched further; others are {rules.NOT_MEASURED}"
        choices.make("rope_scaling", kind, reason)
    elif own:
        reason = f"the model's divisors stay ({', '.join(sorted(own))}); {rules.NOT_MEASURED}"
        choices.make("rope_scaling", "theta", f"{reason}, lrk-train's default")
    else:
        found = rules.rope_plan(evidence)
        choices.make("rope_scaling", found.value, found.reason, *found.evidence)


def _choose_spread(
    choices: Choices, subject: Subject, evidence: Evidence, name: str, length: int
) -> str:
    """Reach and temperature; returns the method with what is added to it."""
    reach = rules.part(evidence, name, rules.REACH)
    reached = choices.make(
        "position_reach",
        evidence.reach if reach.value else 1.0,
        reach.reason,
        *reach.evidence,
    )
    heat = rules.part(evidence, name, rules.TEMPERATURE)
    factor = _attention_factor(subject, choices.values)
    ratio = math.log(reached * subject.target) / math.log(length)
    power = evidence.temperature_power
    if not heat.value:
        wanted, reason, names = 1.0, heat.reason, heat.evidence
    elif not math.isclose(factor, 1.0):
        wanted, names = 1.0, ()
        reason = (
            f"RoPE brings an attention factor of {factor:.3g}, which does the same in part "
            f"(docs/proof.md); both together are {rules.NOT_MEASURED}"
        )
    else:
        wanted, names = round(ratio**power, 4), heat.evidence
        formula = f"(log(reach x target) / log(train_length)) ^ {power:g}"
        reason = f"{formula}, as in the studies; {heat.reason}"
    heated = choices.make("attention_temperature", wanted, reason, *names)
    added = (rules.REACH if reached > 1 else "") + (rules.TEMPERATURE if heated != 1 else "")
    return name + added


def _attention_factor(subject: Subject, values: Mapping[str, Any]) -> float:
    """Of cosine and sine in the extended model: the largest of its kinds of layers."""
    config = copy.deepcopy(text_config(subject.config))
    file = values.get("rope_factors")
    plan = RopePlan(
        values.get("rope_scaling", "theta"),
        values.get("rope_theta"),
        None if file is None else read_rope_factors(file),
        values.get("rope_critical_dimension"),
    )
    extend_config(config, subject.target, plan)
    return max(
        frequencies_of(config, rope_parameters(config, kind))[1]
        for kind in rope_layer_types(config)
    )


def _notes_on_data(subject: Subject, values: Mapping[str, Any]) -> Iterator[str]:
    data, length = subject.data, values["train_length"]
    if data is None:
        return
    share, count = data.share_of_tokens(length), data.documents_of(length)
    which = "" if data.is_whole else "first "
    said = (
        f"of the {which}{len(data.lengths):,} documents {count:,} have the {length:,} tokens of a "
        f"sample, with {share:.0%} of the text"
    )
    if share >= FEW_LONG or not data.is_text:
        yield said
    else:
        yield (
            f"{said}; the others are packed, and distances within them alone are trained: "
            "`lrk-data assemble` lays short documents together into long ones (docs/data.md)"
        )


def _nothing_fits(subject: Subject, tried: Sequence[Tried]) -> str:
    plans = [each for each in tried if each.plan is not None]
    if not plans:
        return f"no rung of the ladder is possible: {tried[-1].rung.name}: {tried[-1].reason}"
    least = min(plans, key=lambda each: each.plan.device_gib if each.plan else math.inf)
    assert least.plan is not None
    return (
        f"nothing fits the {subject.card.gib:.1f} GiB of {subject.card.name}: the smallest plan, "
        f"{least.rung.name}, takes {least.plan.device_gib:.1f} GiB for samples of "
        f"{least.plan.settings.length:,} tokens; take a larger card, or several (docs/scale.md)"
    )


def _beside_full_length(
    subject: Subject, choices: Choices, evidence: Evidence, studied: str, taken: Tried
) -> str:
    """What samples of full length would cost, which the evidence has ahead."""
    found = rules.full_length(evidence, studied)
    values = {k: v for k, v in choices.values.items() if k not in ACTIONS}
    spread = ("position_reach", "attention_temperature", "contiguous_share", "distill")
    fixed = {
        name: value
        for name, value in choices.given.items()
        if name not in (*spread, "train_length", "position_method", *ACTIONS)
    }
    of_techniques = {name for name in taken.rung.values if name not in choices.given}
    whole = {k: v for k, v in values.items() if k not in spread and k not in of_techniques}
    batches = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    whole |= {"position_method": "contiguous", "train_length": subject.target} | batches
    fixed = {name: value for name, value in fixed.items() if name not in batches}
    tried = climb(subject.model, subject.config, whole, fixed, subject.card)
    last = tried[-1]
    if not fits(last, subject.card) or last.plan is None or taken.plan is None:
        return f"{found.reason}; but samples of {subject.target:,} tokens do not fit the card"
    samples = values.get("per_device_train_batch_size", 1)
    short, full = taken.plan.flops / samples, last.plan.flops
    seconds = taken.plan.seconds_of_products / samples, last.plan.seconds_of_products
    return (
        f"{found.reason}. Beside this recipe, position_method contiguous with train_length "
        f"{subject.target:,} fits too ({last.rung.name}, {last.plan.device_gib:.1f} GiB): "
        f"a sample has {subject.target / taken.plan.settings.length:.1f} times the tokens and "
        f"{full / short:.1f} times the FLOPs ({full / 1e12:,.0f} TFLOP beside {short / 1e12:,.0f}, "
        f"{seconds[1]:,.1f} s beside {seconds[0]:,.1f} s at an assumed {EFFICIENCY:.0%} of the "
        "published peak)"
    )


def _climbed(tried: Sequence[Tried]) -> Iterator[str]:
    """A sentence for each rung; one for neighbours that are passed over for one reason."""
    for reason, group in groupby(tried, key=lambda each: each.reason or each.rung.name):
        first, *others = group
        if first.plan is None:
            more = f" and {len(others)} more" if others else ""
            yield f"{first.rung.name}{more}: {reason}"
            continue
        plan = first.plan
        yield (
            f"{first.rung.name}: {plan.device_gib:.1f} GiB, {plan.flops / 1e12:,.0f} TFLOP, "
            f"{plan.seconds_of_products:,.1f} s at an assumed {EFFICIENCY:.0%} of the peak"
        )


def _reason(choice: Choice, indent: str) -> list[str]:
    rests = f"rests on {'; '.join(choice.evidence)}" if choice.evidence else ""
    return [*_wrapped(choice.reason, indent), *_wrapped(rests, indent)]


def _wrapped(text: str, indent: str, first: str | None = None) -> list[str]:
    return wrap(
        text,
        100,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

"""The `lrk-plan` command."""

import argparse
import difflib
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from lrk.atomic import write_text
from lrk.command import run_command
from lrk.command_line import CommandParser, add_answers, looks
from lrk.hf.backends import BACKENDS
from lrk.hf.distillation import ORIGINAL, TEACHERS
from lrk.output_folder import check_output_file
from lrk.plan.chart import draw_comparison, draw_plan
from lrk.plan.configs import MODELS, load_config
from lrk.plan.gpus import GPUS, GPUS_PER_NODE, NETWORK
from lrk.plan.ledger import PARTS
from lrk.plan.methods import TRAIN_SHARE, Budget, compare_methods, methods_table
from lrk.plan.planner import ALLOCATOR_SLACK, CONTEXT_GIB, GIB, Plan, longest, plan
from lrk.plan.presets import usual_step
from lrk.plan.settings import DTYPES, IMPLEMENTATIONS, OPTIMIZERS, Settings
from lrk.plan.variants import flags, variants, variants_table

LOOKS = looks(
    "Plan a training step: its peak memory and what that is made of, its FLOPs and time.\n"
    "The step is traced on tensors without memory: no GPU, no weights, half a minute.",
    [
        ("what the preset of a model runs, and cheaper variants", "lrk-plan --model llama-3-8b"),
        (
            "the longest samples that fit a GPU of 80 GB",
            "lrk-plan --model llama-3-8b --fit 80GB --tile_tokens 2048",
        ),
        (
            "what each recipe costs for a window",
            "lrk-plan --model llama-3-8b --compare_methods --target_length 131072",
        ),
        (
            "stock transformers beside lrk, with a chart",
            "lrk-plan --model llama-3-8b --length 39322 --compare --plot memory.png",
        ),
    ],
    epilog="docs/memory.md says how plans are made and how near they come.",
)

# What --compare_methods has no place for.
_OF_OTHERS = ("length", "fit", "compare", "plot")


def main(argv: Sequence[str] | None = None) -> int:
    """`lrk-plan --model MODEL [--length N | --fit 80GiB | --compare_methods --target_length N]`.

    Without a flag of the step that of the model's preset is planned (`lrk.plan.presets`), and
    others beside it (`lrk.plan.variants`).

    Returns the status of `lrk.command.run_command`.
    """
    words = sys.argv[1:] if argv is None else argv
    return run_command("lrk-plan", lambda: _run(_parse(words)))


def parser() -> CommandParser:
    """The parser of all questions and of the step that they are asked of."""
    parser = CommandParser(
        prog="lrk-plan", usage="lrk-plan --model MODEL [--KEY VALUE ...]", **LOOKS
    )
    add_answers(parser)
    add = parser.add_argument_group("question").add_argument
    add(
        "--model",
        required=True,
        help=f"{', '.join(MODELS)}, the hub's name of one of these, or the path of a config.json",
    )
    add("--length", type=int, help="real tokens of a sample (default: those of the model's preset)")
    add("--fit", metavar="GIB", help="find the longest real length for a device, as in 80GiB")
    add("--compare", action="store_true", help="beside stock, and lrk's loss and RoPE alone")
    add("--compare_methods", action="store_true", help="what samples of each recipe cost")
    add("--target_length", type=int, help="with --compare_methods: window to reach, in tokens")
    add("--train_share", type=float, help=f"of it in a sample that skips (default: {TRAIN_SHARE})")
    add("--samples", type=int, help="with --compare_methods: of a whole run, as --tokens")
    add("--gpu", choices=(*GPUS, "cpu"), default="h100", help="whose kernels, speed and memory")
    add("--tokens", type=int, help="real tokens of the whole run, to estimate its days")
    add("--dollars_per_hour", type=float, help="price of the GPU, to estimate the cost of the run")
    add("--json", type=Path, metavar="FILE", help="write the plan, or a list of those compared")
    add("--plot", type=Path, metavar="FILE", help="write a bar chart as PNG")
    add = parser.add_argument_group("step").add_argument
    add("--batch", type=int, default=1, help="samples of a forward pass")
    add("--implementation", choices=tuple(IMPLEMENTATIONS), default="lrk")
    add("--attention", choices=tuple(BACKENDS), default="lrk", help="whose attention lrk runs")
    add("--dtype", choices=DTYPES, default="bfloat16", help="of the weights")
    add("--bf16", action="store_true", help="bf16 autocast")
    add = parser.add_argument_group("what is kept, and where").add_argument
    add(
        "--activation_checkpointing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the input of each layer alone",
    )
    add("--keep_attention", action="store_true", help="checkpoints keep what attention made")
    add("--layers_per_checkpoint", type=int, default=1, help="from one checkpoint to the next")
    add("--tile_tokens", type=int, default=0, help="tokens of a tile of norms and MLPs; 0: whole")
    add("--offload_activations", action="store_true", help="checkpoints are held on the host")
    add = parser.add_argument_group("optimizer and gradients").add_argument
    add(
        "--accumulates",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="gradients of an earlier micro-batch are there already",
    )
    add("--clips", action=argparse.BooleanOptionalAction, default=True, help="clip gradients")
    add("--optim", choices=OPTIMIZERS, default="adamw_torch_8bit", help="transformers' name")
    add("--optimizer_in_backward", action="store_true", help="update, and free gradients, at once")
    add("--offload_optimizer", action="store_true", help="optimizer state and step on the host")
    add = parser.add_argument_group("adapters, teacher and processes").add_argument
    add("--lora_rank", type=int, default=0, help="0 trains all parameters")
    add(
        "--lora_modules_to_save",
        nargs="+",
        default=(),
        help="ends of names of modules that are trained whole beside the adapters",
    )
    add("--distill", choices=TEACHERS, default="none", help="teacher of self-distillation")
    add("--distill_length", type=int, default=0, help="with --distill original: short context")
    add("--load_in_4bit", action="store_true", help="QLoRA: the linear layers in 4 bits")
    add("--fsdp", type=int, default=1, help="GPUs that weights are sharded over, by FSDP2")
    add("--sequence_parallel", type=int, default=1, help="how many of these share a sample")
    add(
        "--sync_each_batch",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with --fsdp gradients are reduced after each micro-batch",
    )
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    known = parser()
    flags = [flag for action in known._actions for flag in action.option_strings]
    spelt = [_underscored(word, flags) for word in argv]
    if broken := [word for word in spelt if word == "--" or word.endswith("=--")]:
        raise ValueError(f"{broken[0]!r} has no value")
    arguments, unknown = known.parse_known_args(spelt)
    if unknown:
        near = difflib.get_close_matches(unknown[0], flags, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{unknown[0]} is not an argument{hint}")
    arguments.given = {
        action.dest
        for action in known._actions
        for word in spelt
        if word.partition("=")[0] in action.option_strings
    }
    _check_what(arguments)
    if arguments.compare and arguments.sequence_parallel > 1:
        raise ValueError(
            f"--compare with --sequence_parallel {arguments.sequence_parallel}: neither stock "
            "transformers nor liger-style shares a sample; leave one of them out"
        )
    if arguments.compare and arguments.distill != "none":
        raise ValueError(
            f"--compare with --distill {arguments.distill}: neither stock transformers nor "
            "liger-style has a teacher; leave one of them out"
        )
    for name in ("tokens", "samples", "dollars_per_hour"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} is {value}; it must be positive")
    return arguments


def _check_what(arguments: argparse.Namespace) -> None:
    """Refuse two questions at once, and none."""
    given = [name for name in _OF_OTHERS if getattr(arguments, name) not in (None, False)]
    if not arguments.compare_methods:
        for name in ("target_length", "train_share", "samples"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name} belongs to --compare_methods, which is not there")
        if arguments.length is not None and arguments.fit is not None:
            raise ValueError("give one of --length and --fit")
    elif given:
        raise ValueError(f"--{given[0]} does not go with --compare_methods; leave one of them out")
    elif arguments.target_length is None:
        raise ValueError("--compare_methods needs --target_length, the window to reach")
    elif arguments.tokens is not None and arguments.samples is not None:
        raise ValueError("give one of --tokens and --samples: each is the length of a whole run")


def _underscored(word: str, flags: Sequence[str]) -> str:
    """`-` and `_` are the same inside a flag."""
    flag, equals, value = word.partition("=")
    if not flag.startswith("--"):
        return word
    known = {known.replace("_", "-"): known for known in flags}
    return known.get(flag.replace("_", "-"), flag) + equals + value


def _run(arguments: argparse.Namespace) -> int:
    for name in ("json", "plot"):
        if getattr(arguments, name) is not None:
            check_output_file(getattr(arguments, name), name)
    config = load_config(arguments.model)
    if arguments.compare_methods:
        return _compare_methods(arguments, config, _any_length(arguments))
    source = ""
    if arguments.fit is not None:
        found = longest(arguments.model, config, _any_length(arguments), _gib(arguments.fit))
    else:
        settings, source = _step(arguments, config)
        found = plan(arguments.model, config, settings)
    plans = {found.settings.implementation: found}
    if arguments.compare:
        for implementation in IMPLEMENTATIONS:
            if implementation not in plans:
                without: dict[str, Any] = {
                    "attention": "lrk",
                    "keep_attention": False,
                    "tile_tokens": 0,
                    "layers_per_checkpoint": 1,
                }
                settings = replace(found.settings, implementation=implementation, **without)
                plans[implementation] = plan(arguments.model, config, settings)
    run = arguments.tokens, arguments.dollars_per_hour
    if source:
        print(f"Planned: {source}\n")
    print(comparison(plans) if arguments.compare else description(found, *run))
    if source and not arguments.compare:
        print("", *variants_table(found, variants(found, config)), sep="\n")
    if arguments.json is not None:
        reports = [each.report(*run) for each in plans.values()]
        content = reports if arguments.compare else reports[0]
        write_text(arguments.json, json.dumps(content, indent=1) + "\n")
    if arguments.plot is not None and arguments.compare:
        draw_comparison(plans, arguments.plot)
    elif arguments.plot is not None:
        draw_plan(found, arguments.plot)
    return 0


def _chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """The step of the flags and their defaults, less its length."""
    named = {field.name for field in fields(Settings)} - {"length"}
    return {name: value for name, value in vars(arguments).items() if name in named}


def _any_length(arguments: argparse.Namespace) -> Settings:
    """The step of what finds lengths itself."""
    length = max(2 * max(arguments.sequence_parallel, 1), arguments.distill_length)
    return Settings(length=length, **_chosen(arguments))


def _step(arguments: argparse.Namespace, config: PretrainedConfig) -> tuple[Settings, str]:
    """The step of the flags, or where none says anything of it the usual one and its source."""
    chosen = _chosen(arguments)
    settings, source = usual_step(arguments.model, config, on_gpu=arguments.gpu != "cpu")
    length = settings["length"] if arguments.length is None else arguments.length
    if arguments.given & (chosen.keys() - {"gpu"}):
        return Settings(**chosen | {"length": length}), ""
    usual = Settings(**settings | {"length": length, "gpu": arguments.gpu})
    return usual, f"{source} ({flags(usual)}); with a flag of the step flags alone count"


def _compare_methods(
    arguments: argparse.Namespace, config: PretrainedConfig, settings: Settings
) -> int:
    share = TRAIN_SHARE if arguments.train_share is None else arguments.train_share
    budget = Budget(arguments.samples, arguments.tokens, arguments.dollars_per_hour)
    costs = compare_methods(arguments.model, config, settings, arguments.target_length, share)
    print(methods_table(costs, budget))
    if arguments.json is not None:
        content = [cost.report(costs[0], budget) for cost in costs]
        write_text(arguments.json, json.dumps(content, indent=1) + "\n")
    return 0


def _gib(text: str) -> float:
    """`80GiB` or `80`; a decimal `80GB` is 74.5 GiB."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*(GiB|GB)?", text)
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"--fit is {text!r}; it must be a size as in 80GiB")
    return float(match[1]) * (1e9 / GIB if match[2] == "GB" else 1.0)


def description(
    plan: Plan, tokens: int | None = None, dollars_per_hour: float | None = None
) -> str:
    """A plan in words, for a terminal."""
    settings = plan.settings
    whose = "" if settings.attention == "lrk" else f" with {settings.attention}"
    lines = [
        f"{plan.model}, {settings.length:,} tokens x {settings.batch}, "
        f"{settings.implementation}{whose}, {settings.dtype}, "
        f"{adapters(settings)}{settings.optim}, traced without a GPU",
        *_rank(settings),
        *teacher(settings),
        "",
        f"Peak {plan.peak_gib:.2f} GiB, {_place(plan)}",
    ]
    lines += [
        f"  {part.replace('_', ' '):20} {gib:8.2f} GiB" for part, gib in plan.parts_gib.items()
    ]
    lines += ["", "Peak of each phase"]
    lines += [f"  {phase:20} {usage.total / GIB:8.2f} GiB" for phase, usage in plan.phases.items()]
    of = "a sample's step" if settings.fsdp == 1 else "a rank's step"
    lines += ["", f"Matrix products of {of}: {plan.flops / 1e12:,.1f} TFLOP"]
    if plan.sent:
        lines.append("Sent by a rank to others in a step, and received by it")
    lines += [
        f"  {each.group}, {each.name}".ljust(36) + f"{nbytes / GIB:9.2f} GiB"
        for each, nbytes in plan.sent.items()
        if nbytes > GIB / 1000
    ]
    if settings.gpu == "cpu":
        return "\n".join(lines)
    estimate = plan.estimate(tokens, dollars_per_hour)
    lines += [
        "",
        f"Assumed, not measured: {ALLOCATOR_SLACK:.0%} allocator slack and {CONTEXT_GIB} GiB of "
        f"context: a device of {plan.device_gib:.1f} GiB",
        *(_estimated(plan, estimate) if settings.fsdp == 1 else _estimated_of_many(plan, estimate)),
    ]
    if estimate["days"] is not None:
        cost = "" if estimate["dollars"] is None else f", {estimate['dollars']:,.0f} dollars"
        lines.append(f"  {tokens:,} tokens: {estimate['days']:.2f} days{cost}")
    return "\n".join(lines)


def _rank(settings: Settings) -> Iterator[str]:
    """Whose memory it is, where there are several processes."""
    if settings.fsdp == 1:
        return
    text = f"One of {settings.fsdp} processes that weights are sharded over (FSDP2)"
    if settings.sequence_parallel > 1:
        own = settings.length // settings.sequence_parallel
        text += f", {settings.sequence_parallel} to a sample: {own:,} tokens of it"
    yield text


def teacher(settings: Settings) -> Iterator[str]:
    """Whose forward pass comes before the student's, where there is a teacher."""
    if settings.distill == ORIGINAL:
        yield (
            f"Self-distillation: a frozen second model reads {settings.distill_length:,} tokens of "
            "each sample, which the student reads once more"
        )
    elif settings.distill != "none":
        yield "Self-distillation: one more forward pass of the model, on another view of samples"


def _estimated(plan: Plan, estimate: dict[str, Any]) -> Iterator[str]:
    yield (
        f"Estimate for one {plan.settings.gpu} at {estimate['efficiency']:.0%} of its published "
        f"peak, not measured: {estimate['seconds']:.1f} s, "
        f"{estimate['tokens_per_second']:,.0f} tokens/s"
    )


def _estimated_of_many(plan: Plan, estimate: dict[str, Any]) -> Iterator[str]:
    settings = plan.settings
    yield (
        f"Estimate for {settings.fsdp} {settings.gpu}, {GPUS_PER_NODE} a node, not measured, at "
        f"{estimate['efficiency']:.0%} of the published peak and\n"
        f"{estimate['link_efficiency']:.0%} of the bandwidths, "
        f"{GPUS[settings.gpu].link / 1e9:.0f} GB/s in a node and "
        f"{NETWORK / 1e9:.0f} GB/s a GPU between nodes:"
    )
    yield (
        f"  products {plan.seconds_of_products:.1f} s, communication "
        f"{plan.seconds_of_communication:.1f} s: {estimate['seconds_overlapped']:.1f} s if they "
        f"overlap, {estimate['seconds']:.1f} s if not"
    )
    yield (
        f"  {estimate['tokens_per_second']:,.0f} tokens/s, "
        f"{estimate['tokens_per_second_per_gpu']:,.0f} a GPU, if not"
    )


def adapters(settings: Settings) -> str:
    if not settings.lora_rank:
        return ""
    whole = "".join(f" and {name}" for name in settings.lora_modules_to_save)
    on = " on 4 bits" if settings.load_in_4bit else ""
    return f"LoRA of rank {settings.lora_rank}{whole}{on}, "


def _place(plan: Plan) -> str:
    moment = plan.peak.moment
    of = "layer" if plan.settings.layers_per_checkpoint == 1 else "checkpoint"
    return f"in {moment.phase}" + ("" if moment.layer is None else f" of {of} {moment.layer}")


def comparison(plans: dict[str, Plan]) -> str:
    """Plans side by side, in GiB."""
    some = next(iter(plans.values()))
    names = list(plans)
    lines = [f"{some.model}, {some.settings.length:,} tokens, GiB, traced without a GPU", ""]
    lines.append(" " * 20 + "".join(f"{name:>13}" for name in names))
    for part in PARTS:
        sizes = "".join(f"{plan.parts_gib[part]:13.2f}" for plan in plans.values())
        lines.append(f"{part.replace('_', ' '):20}{sizes}")
    lines.append(f"{'peak':20}" + "".join(f"{plan.peak_gib:13.2f}" for plan in plans.values()))
    lines.append(
        f"{'TFLOP':20}" + "".join(f"{plan.flops / 1e12:13,.0f}" for plan in plans.values())
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

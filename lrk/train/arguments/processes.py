"""Several processes: what they share, and which engines lrk can run on."""

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from accelerate.parallelism_config import ParallelismConfig
from transformers.utils.import_utils import is_accelerate_available

from lrk.train.arguments.argument import help_text
from lrk.train.engine import (
    FSDP1,
    FSDP2,
    ONE_PROCESS,
    Engine,
    ParallelSizes,
    engine_of,
    launched_with_deepspeed,
    launched_with_fsdp,
    launched_with_megatron,
    launched_with_sizes,
)

if TYPE_CHECKING:
    from lrk.train.arguments.training import LrkTrainingArguments

logger = logging.getLogger(__name__)

_ACCELERATE = "1.12.0"
"""Before it, transformers takes no `ParallelismConfig`."""
_TRUTHS = {"true": True, "false": False}


@dataclass
class ProcessArguments:
    """What the processes of `torchrun` or `accelerate launch` share."""

    sequence_parallel: int = field(
        default=1,
        metadata=help_text(
            "processes that share a sample, each with some of its tokens; more than 1 shards the "
            "weights too, by FSDP2"
        ),
    )


def resolve(arguments: "LrkTrainingArguments") -> None:
    """Take over what `accelerate launch` says, and switch FSDP2 on where it is needed.

    Raises:
        ValueError: for two different numbers, or another engine.
    """
    # transformers takes a text for one of its older options.
    arguments.fsdp = _TRUTHS.get(str(arguments.fsdp).lower(), arguments.fsdp)
    number = arguments.sequence_parallel
    unsharded = arguments.is_given("fsdp") and not arguments.fsdp
    if number < 1:
        raise ValueError(f"sequence_parallel is {number}; it must be at least 1")
    by_fsdp = launched_with_fsdp()
    by_deepspeed = bool(arguments.deepspeed) or launched_with_deepspeed()
    elsewhere = ParallelSizes.of(arguments.parallelism_config).cp
    if elsewhere > 1:
        if arguments.is_given("sequence_parallel") and number != elsewhere:
            raise ValueError(
                f"sequence_parallel is {number}, but accelerate's cp_size is {elsewhere}; leave "
                "one of them out, or make them equal"
            )
        arguments.sequence_parallel = number = elsewhere
    if number > 1:
        if by_deepspeed:
            raise ValueError(
                f"sequence_parallel is {number} with DeepSpeed; it needs FSDP2, which torchrun "
                "alone gives it: leave deepspeed out"
            )
        if unsharded:
            raise ValueError(f"sequence_parallel is {number} with fsdp false; it needs FSDP2")
        if by_fsdp != FSDP2:
            arguments.fsdp = True
    if (arguments.fsdp or by_fsdp) and by_deepspeed:
        raise ValueError(
            "FSDP and DeepSpeed are both asked for, by arguments or by accelerate launch; give one"
        )


def check(arguments: "LrkTrainingArguments") -> Engine:
    """Refuse engines that lrk-train cannot run on, and make the processes share samples.

    Returns:
        How the run is spread.
    """
    engine = engine_of(arguments)
    if arguments.fsdp and engine.name == ONE_PROCESS:
        logger.warning(
            "fsdp is given, but neither torchrun nor accelerate launch started this process: it is "
            "the only one, and nothing is sharded"
        )
    sizes = ParallelSizes.of(arguments.parallelism_config)
    if launched_with_megatron():
        raise ValueError(
            "accelerate launch asks for Megatron-LM, which has models of its own; use FSDP2 "
            "(--use_fsdp --fsdp_version 2)"
        )
    if engine.name == FSDP1:
        raise ValueError(
            "FSDP is asked for in version 1, which is deprecated and which lrk does not run on; "
            "use FSDP2: fsdp_config.version 2, or --fsdp_version 2 of accelerate launch"
        )
    if sizes.sp > 1:
        raise ValueError(
            f"accelerate's sp_size is {sizes.sp}: its Ulysses (DeepSpeed ALST) knows no packed "
            "documents and no skipped positions; use sequence_parallel instead"
        )
    if engine.tensor_parallel > 1:
        raise ValueError(
            f"{engine.tensor_parallel} processes are to share every weight (tensor parallelism), "
            "but lrk-train loads whole models, which are not cut so; use FSDP2, and "
            "sequence_parallel where a sample does not fit"
        )
    if engine.processes > 1 and not arguments.average_tokens_across_devices:
        raise ValueError(
            f"average_tokens_across_devices is false with {engine.processes} processes; it must be "
            "true: else a label weighs the more, the fewer its process has"
        )
    if arguments.sequence_parallel > 1:
        _check_sequence_parallel(arguments, engine)
        return engine_of(arguments)
    return engine


def _check_sequence_parallel(arguments: "LrkTrainingArguments", engine: Engine) -> None:
    """Refuse what cannot be dealt out, and make accelerate's configuration of it."""
    number, processes = arguments.sequence_parallel, engine.processes
    said = f"sequence_parallel is {number}"
    if processes % number:
        count = "1 process" if processes == 1 else f"{processes} processes"
        raise ValueError(
            f"{said} with {count}; it must divide their number, such as torchrun "
            f"--nproc_per_node {number} starts"
        )
    if engine.name != FSDP2:
        raise ValueError(f"{said} with {engine.name}; it needs FSDP2")
    if arguments.train_length % (2 * number):
        raise ValueError(
            f"train_length is {arguments.train_length} with sequence_parallel {number}; it must "
            f"be a multiple of {2 * number}, the pieces that a sample is dealt out in"
        )
    for kernel, chosen in arguments.kernels.items():
        if chosen is not True:
            raise ValueError(
                f"{said} with kernels.{kernel} {chosen!r}; transformers' own sees the tokens of "
                f"one process alone, so leave kernels.{kernel} true"
            )
    if arguments.torch_compile:
        raise ValueError(
            f"{said} with torch_compile, under which samples were never dealt out: leave it out"
        )
    if not is_accelerate_available(_ACCELERATE):
        raise ValueError(f"{said}, which needs accelerate {_ACCELERATE} or later")
    if engine.sequence_parallel == 1:
        if arguments.parallelism_config is not None or launched_with_sizes():
            raise ValueError(
                f"{said} beside a parallelism_config without cp_size; give it cp_size {number}, or "
                "leave one of them out"
            )
        arguments.parallelism_config = ParallelismConfig(
            dp_replicate_size=1,
            dp_shard_size=processes // number,
            tp_size=1,
            cp_size=number,
            sp_size=1,
        )

"""How a run is spread over processes: by which engine, and who shares what.

An engine is chosen by arguments (`fsdp`, `deepspeed`, `parallelism_config`, `sequence_parallel`)
or by `accelerate launch`, which sets environment variables alone. Arguments go first, as they do
in transformers. Counts of samples and refusals ask here, and nowhere else.
"""

import os
from dataclasses import dataclass
from typing import Any

from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

ONE_PROCESS, DDP, FSDP1, FSDP2 = "one process", "DDP", "FSDP1", "FSDP2"
ZERO = "ZeRO-{}"
ZERO_3 = ZERO.format(3)
_FSDP = frozenset({FSDP1, FSDP2})
# By name, or by its number in PyTorch.
_SHARDED = ("SHARDED_STATE_DICT", "3")


@dataclass(frozen=True)
class Engine:
    """How a run is spread.

    Attributes:
        name: "one process", "DDP", "FSDP2", "FSDP1", or "ZeRO-" and the stage.
        processes: of the run, on all nodes.
        sequence_parallel: processes that share a sample, each with some of its tokens.
        tensor_parallel: processes that share a sample, each with some of every weight.
        shards_checkpoints: whether each process writes its own part of a checkpoint's model, as
            FSDP does with SHARDED_STATE_DICT.
        checkpoints_activations: whether the engine itself wraps layers to compute them again.
    """

    name: str
    processes: int
    sequence_parallel: int = 1
    tensor_parallel: int = 1
    shards_checkpoints: bool = False
    checkpoints_activations: bool = False

    @property
    def shards_weights(self) -> bool:
        """Whether a process holds parts of the weights, and gathers a layer when it computes it."""
        return self.name in _FSDP or self.name == ZERO_3

    @property
    def is_deepspeed(self) -> bool:
        return self.name.startswith(ZERO.format(""))

    @property
    def data_parallel(self) -> int:
        """Samples, or batches of them, that are computed at the same time."""
        return self.processes // (self.sequence_parallel * self.tensor_parallel)

    def check_made(self, made: DistributedType) -> None:
        """Refuse what accelerate made of it, if that is something else.

        Raises:
            ValueError: for FSDP on a CPU, say, of which accelerate makes DDP without a word.
        """
        if self.name in _FSDP:
            expected = made == DistributedType.FSDP
        elif self.is_deepspeed:
            expected = made == DistributedType.DEEPSPEED
        else:
            expected = made == DistributedType.NO or made.value.startswith("MULTI_")
        if not expected:
            raise ValueError(
                f"{self.name} is asked for, but accelerate makes {made.value} of it here, as it "
                "makes DDP of FSDP on a CPU: leave it out, or run it where accelerate has it"
            )

    def __str__(self) -> str:
        """Such as `FSDP2 on 8 processes, 2 of which share a sample`."""
        if self.processes == 1:
            return self.name
        shared = self.processes // self.data_parallel
        tail = f", {shared} of which share a sample" if shared > 1 else ""
        return f"{self.name} on {self.processes} processes{tail}"


def engine_of(arguments: TrainingArguments) -> Engine:
    """The engine of a run, in a process of it.

    Args:
        arguments: made, so that the process knows how many there are.
    """
    sizes = ParallelSizes.of(arguments.parallelism_config)
    name = _name(arguments)
    return Engine(
        name=name,
        processes=arguments.world_size,
        sequence_parallel=sizes.cp * sizes.sp,
        tensor_parallel=max(sizes.tp, _autotp(arguments)),
        shards_checkpoints=name in _FSDP and _state_dict_type(arguments, name) in _SHARDED,
        checkpoints_activations=name in _FSDP and _checkpoints_activations(arguments),
    )


@dataclass(frozen=True)
class ParallelSizes:
    """Processes along the dimensions that share a sample, as accelerate names them.

    Attributes:
        cp: context parallelism: tokens, keys and values gathered.
        sp: DeepSpeed's Ulysses (ALST): tokens, heads traded.
        tp: tensor parallelism.
    """

    cp: int = 1
    sp: int = 1
    tp: int = 1

    @staticmethod
    def of(config: ParallelismConfig | None) -> "ParallelSizes":
        """Of a configuration, else of what `accelerate launch` set."""
        if config is not None:
            # accelerate knows `sp_size` since 1.12.
            return ParallelSizes(config.cp_size, getattr(config, "sp_size", 1), config.tp_size)
        if not launched_with_sizes():
            return ParallelSizes()
        return ParallelSizes(*(_environment_size(kind) for kind in ("CP", "SP", "TP")))


def launched_with_fsdp() -> str | None:
    """FSDP1 or FSDP2 if `accelerate launch` asks for it."""
    if not _is_on("ACCELERATE_USE_FSDP"):
        return None
    return FSDP2 if os.environ.get("FSDP_VERSION", "1") == "2" else FSDP1


def launched_with_deepspeed() -> bool:
    """Whether `accelerate launch` asks for DeepSpeed."""
    return _is_on("ACCELERATE_USE_DEEPSPEED")


def launched_with_megatron() -> bool:
    """Whether `accelerate launch` asks for Megatron-LM."""
    return _is_on("ACCELERATE_USE_MEGATRON_LM")


def launched_with_sizes() -> bool:
    """Whether `accelerate launch` says along which dimensions processes share what."""
    return _is_on("ACCELERATE_USE_PARALLELISM_CONFIG")


def _name(arguments: TrainingArguments) -> str:
    if arguments.deepspeed_plugin is not None:
        return ZERO.format(arguments.deepspeed_plugin.zero_stage)
    # Without a launcher accelerate makes one process, which has nothing to shard.
    if arguments.parallel_mode != ParallelMode.DISTRIBUTED:
        return ONE_PROCESS
    if arguments.fsdp:
        return FSDP2 if int(_fsdp_config(arguments).get("version", 2)) == 2 else FSDP1
    if launched := launched_with_fsdp():
        return launched
    return DDP if arguments.world_size > 1 else ONE_PROCESS


def _autotp(arguments: TrainingArguments) -> int:
    """Processes among which DeepSpeed cuts weights."""
    if arguments.deepspeed_plugin is None:
        return 1
    return (
        arguments.deepspeed_plugin.deepspeed_config.get("tensor_parallel", {}).get("autotp_size", 0)
        or 1
    )


def _state_dict_type(arguments: TrainingArguments, name: str) -> str:
    if arguments.fsdp:
        return str(_fsdp_config(arguments).get("state_dict_type", "FULL_STATE_DICT")).upper()
    # The two versions of FSDP have two defaults in accelerate.
    default = _SHARDED[0] if name == FSDP2 else "FULL_STATE_DICT"
    return os.environ.get("FSDP_STATE_DICT_TYPE", default).upper()


def _checkpoints_activations(arguments: TrainingArguments) -> bool:
    if arguments.fsdp and "activation_checkpointing" in _fsdp_config(arguments):
        return str(_fsdp_config(arguments)["activation_checkpointing"]).lower() == "true"
    return _is_on("FSDP_ACTIVATION_CHECKPOINTING")


def _fsdp_config(arguments: TrainingArguments) -> dict[str, Any]:
    """As transformers has opened it."""
    return arguments.fsdp_config if isinstance(arguments.fsdp_config, dict) else {}


def _is_on(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def _environment_size(kind: str) -> int:
    return int(os.environ.get(f"PARALLELISM_CONFIG_{kind}_SIZE", "1"))

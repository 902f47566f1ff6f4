"""One rank of several, by FSDP2 as it is: accelerate shards the model, PyTorch gathers and reduces.

A plan has no other ranks. It is made in a process group that moves nothing (PyTorch's `fake`
backend): every collective returns at once, with the shapes that it has. `lrk.plan.check` takes the
same step on processes that are there.
"""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from types import SimpleNamespace
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.fsdp import FSDPModule

from lrk.fsdp import keep_digits
from lrk.plan.settings import Settings

Result = TypeVar("Result")

# What PyTorch warns of with accelerate's own calls, which a user of either can do nothing about:
# how accelerate picks the dimensions of its mesh...
_SLICES = "Slicing a flattened dim"
# ... and that a view which leaves a sharded module must not be changed in place: no model is.
VIEWS = "FSDP2-wrapped module .* returned a view tensor"


@contextmanager
def silenced(beginning: str) -> Iterator[None]:
    """Without the one warning that begins so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", beginning, UserWarning)
        yield


def as_one_of(size: int, function: Callable[..., Result], *arguments: object) -> Result:
    """`function(*arguments)` as the first of `size` processes, the others of which are not there.

    A process that is one of a run's has its group already, so that another process is asked.
    """
    if size == 1:
        return function(*arguments)
    if dist.is_initialized():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            there: Future[Result] = pool.submit(as_one_of, size, function, *arguments)
            return there.result()
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        return function(*arguments)
    finally:
        dist.destroy_process_group()


def shard(model: nn.Module, settings: Settings) -> dist.ProcessGroup | None:
    """Shard as accelerate does for transformers' `fsdp: true`, over all processes there are.

    With bf16 autocast it makes trained parameters float32 first, of which FSDP2 gathers bf16 and
    whose gradients it reduces in bf16.

    Returns:
        The processes that share a sample with this one, its neighbours; None where it has its own.
    """
    shared = settings.sequence_parallel
    config = ParallelismConfig(
        dp_replicate_size=1, dp_shard_size=settings.fsdp // shared, cp_size=shared, tp_size=1
    )
    with unset_fake_temporarily():  # a mesh is made of numbers
        mesh = config.build_device_mesh("cpu")
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="TRANSFORMER_BASED_WRAP", reshard_after_forward=True
    )
    plugin.cpu_ram_efficient_loading = False  # of no consequence for a step
    if settings.bf16:
        plugin.set_mixed_precision("bf16")
        keep_digits(plugin)
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="bf16" if settings.bf16 else "no",
        torch_device_mesh=mesh,
        parallelism_config=config,
        device=torch.device("cpu"),
        is_main_process=False,
    )
    with silenced(_SLICES):
        fsdp2_prepare_model(accelerator, model)
    if shared == 1:
        return None
    # A group of its own, also where it is of all processes, so that its traffic is known apart.
    neighbours, _ = dist.new_subgroups(shared)
    return neighbours


def unreduced_gradients(model: nn.Module) -> list[Tensor]:
    """Of whole parameters, where a backward pass has left them without reducing them."""
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.unshard()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for unit in units:
        unit.reshard()
    return found

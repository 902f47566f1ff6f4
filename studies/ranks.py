"""Several processes of one run on one machine without a GPU: as torchrun starts them, on gloo.

    results = run_ranks(function, 4, argument)

The processes are forked from a server that has imported lrk, since imports take longer than a tiny
run. `function` must be importable; what it takes and returns is pickled, tensors by value.
"""

import contextlib
import io
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

_PRELOADED = ["lrk.train.command", "torch.distributed", "torch.distributed.fsdp", "accelerate"]


class RankError(RuntimeError):
    """A rank raised, ended without a word, or did not end in time."""


class Ranks:
    """The processes of a call of `run_ranks`, while they run.

    Args:
        function: called in each process with `arguments`.
        size: how many processes.
        environment: variables beside those of torchrun, such as those of `accelerate launch`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        size: int,
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # As torchrun does, the parent keeps the store; so nobody races for a free port.
        self._store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self.processes: list[Any] = []
        self._ends: list[Connection] = []
        # Else multiprocessing would share the memory of tensors, here among ranks.
        call = pickle.dumps((function, arguments))
        for rank in range(size):
            here, there = context.Pipe(duplex=False)
            variables = {**(environment or {}), **_of_torchrun(rank, size, self._store.port)}
            process = context.Process(target=_run, args=(there, variables, call), daemon=False)
            process.start()
            there.close()
            self.processes.append(process)
            self._ends.append(here)

    def signal(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to all of them."""
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    def wait(self) -> list[int]:
        """Until all have ended. Returns their exit codes, negative for a signal."""
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]

    def results(self, timeout: float = 300) -> list[Any]:
        """What the ranks return, in their order.

        Raises:
            RankError: with the traceback of the first that failed; the others are killed.
        """
        found: dict[int, Any] = {}
        deadline = time.monotonic() + timeout
        try:
            while len(found) < len(self._ends):
                open_ends = [end for rank, end in enumerate(self._ends) if rank not in found]
                ready = wait_for(open_ends, max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise RankError(f"{len(open_ends)} ranks have not ended after {timeout:g} s")
                for end in ready:
                    rank = self._ends.index(end)  # type: ignore[arg-type]
                    found[rank] = _received(end, rank, self.processes[rank])  # type: ignore[arg-type]
        except RankError:
            self.signal()
            raise
        finally:
            self.wait()
        return [found[rank] for rank in range(len(self._ends))]


def run_ranks(
    function: Callable[..., Any],
    size: int,
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> list[Any]:
    """What `function(*arguments)` returns in each of `size` processes, in the order of ranks.

    Raises:
        RankError: with the traceback of the first rank that failed.
    """
    return Ranks(function, size, *arguments, environment=environment).results(timeout)


def lrk_train(words: Sequence[str]) -> tuple[int, str]:
    """`lrk-train`, with FSDP2 on a CPU too: its status, and what it printed on both streams.

    Its data are cached in the folder that the variable `HF_DATASETS_CACHE` names, if it is given.
    """
    import datasets

    from lrk.train.command import main

    # Read when datasets was imported, before this process began.
    datasets.config.HF_DATASETS_CACHE = Path(
        os.environ.get("HF_DATASETS_CACHE", datasets.config.HF_DATASETS_CACHE)
    )
    datasets.disable_progress_bars()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), fsdp_on_cpu():
        status = main(list(words))
    return status, printed.getvalue()


@contextmanager
def fsdp_on_cpu() -> Iterator[None]:
    """accelerate takes FSDP for GPUs alone, and runs DDP on a CPU: here it takes it."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    made = AcceleratorState.__init__

    def make(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        is_new = not AcceleratorState._shared_state
        made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        on_cpu = self.distributed_type == DistributedType.MULTI_CPU
        if not (is_new and fsdp_plugin is not None and on_cpu):
            return
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = make
    try:
        yield
    finally:
        AcceleratorState.__init__ = made


def _of_torchrun(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process on a single node; the store is there already."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return {
        **{name: str(number) for name, number in numbers.items()},
        "GROUP_RANK": "0",
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def _run(end: Connection, variables: dict[str, str], call: bytes) -> None:
    import torch

    os.environ.update(variables)
    torch.set_num_threads(1)
    try:
        function, arguments = pickle.loads(call)
        result = pickle.dumps((True, function(*arguments)))
    except BaseException:
        result = pickle.dumps((False, traceback.format_exc()))
    end.send_bytes(result)
    end.close()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()


def _received(end: Connection, rank: int, process: Any) -> Any:
    try:
        succeeded, result = pickle.loads(end.recv_bytes())
    except EOFError:
        process.join()
        raise RankError(f"rank {rank} ended with {process.exitcode} and without a word") from None
    if not succeeded:
        raise RankError(f"rank {rank}:\n{result}")
    return result

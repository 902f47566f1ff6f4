"""Every byte that a step allocates: who asked for it, when, and for how long.

A dispatch mode sees each operation of PyTorch just above the devices, with real tensors or with
fake ones, which have a shape but no memory. What it has not seen before among the results is a new
allocation, and a weak reference to its storage says when it is freed. Storages that are resized
(FSDP2 frees gathered weights so) pass no dispatcher, and are noted where they are.
"""

import functools
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WEIGHTS = "weights"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer"
SAVED = "saved_activations"
RECOMPUTED = "recomputation"
ATTENTION = "attention_workspace"
LOSS = "loss_workspace"
TEMPORARY = "temporary"
GATHERED = "gathered"
HOST = "offloaded_to_host"
DEVICE_PARTS = (
    WEIGHTS,
    GRADIENTS,
    OPTIMIZER,
    SAVED,
    RECOMPUTED,
    ATTENTION,
    LOSS,
    TEMPORARY,
    GATHERED,
)
PARTS = (*DEVICE_PARTS, HOST)

# Where what they write is of all processes, or for all of them.
_BETWEEN_PROCESSES = ("fsdp", "c10d")

TEACHER = "teacher"
FORWARD, HEAD, BACKWARD, CLIPPING, UPDATE = "forward", "loss", "backward", "clipping", "optimizer"


class Moment(NamedTuple):
    """A stretch of a step: a phase, and the layer that is at work or None between layers."""

    phase: str
    layer: int | None = None


@dataclass
class Block:
    """One allocation. `part` is None until it shows whether the backward pass needs it."""

    nbytes: int
    part: str | None


class Usage(NamedTuple):
    """Bytes of each part at the instant of a moment when the device is fullest."""

    moment: Moment
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """What the device holds."""
        return sum(self.parts[part] for part in DEVICE_PARTS)


class Workspace(NamedTuple):
    """What an operation allocates inside and frees before it returns."""

    part: str
    nbytes: int


# (operation, arguments, result) -> its workspace beyond its results, and its FLOPs
Price = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], tuple[Workspace | None, int]]


class Collective(NamedTuple):
    """What processes do together, and by the name of their group which."""

    name: str
    group: str


# (operation, arguments) -> what it is, and the bytes that a process sends, as many as it receives
Traffic = Callable[[Any, tuple[Any, ...]], tuple[Collective, int] | None]


@dataclass(frozen=True)
class _Event:
    block: Block
    change: int
    part: str | None = None


@dataclass
class _Stretch:
    moment: Moment
    events: list[_Event] = field(default_factory=list)


class Ledger(TorchDispatchMode):
    """Records allocations while it is entered.

    Args:
        price: what the operations do that this mode cannot look into.
        granularity: bytes that every allocation is rounded up to (512 in PyTorch's GPU allocator).
        traffic: what the operations send to other processes, if there are any.

    Attributes:
        flops: of all operations so far.
        sent: bytes so far, by collective.
    """

    def __init__(
        self, price: Price, granularity: int = 1, traffic: Traffic = lambda func, args: None
    ) -> None:
        super().__init__()
        self.flops = 0
        self.sent: Counter[Collective] = Counter()
        self._traffic = traffic
        self._counted_as: str | None = None
        self._price = price
        self._granularity = granularity
        self._stretches = [_Stretch(Moment(FORWARD))]
        self._live: dict[int, Block] = {}
        self._sole_references = _sole_references()

    @property
    def moment(self) -> Moment:
        return self._stretches[-1].moment

    def enter_moment(self, moment: Moment) -> None:
        """What happens from now on belongs to this moment."""
        if moment != self.moment:
            self._stretches.append(_Stretch(moment))

    def hold(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors that exist before the step, or say what those in sight have become."""
        for tensor in map(here, tensors):
            block = self._live.get(tensor.untyped_storage()._cdata)
            if block is None:
                self._add(tensor, part)
            else:
                block.part = block.part or TEMPORARY  # until now
                self._note(_Event(block, 0, part))

    @contextmanager
    def counting_as(self, part: str | None) -> Iterator[None]:
        """What is allocated inside is of this part; None for what its phase says."""
        before, self._counted_as = self._counted_as, part
        try:
            yield
        finally:
            self._counted_as = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # until it has become operations on what is here
        kwargs = kwargs or {}
        in_place = func is torch.ops.aten.add.Tensor and self._adds_in_place(args[0])
        result = func(*args, **kwargs)
        if in_place:
            self._release(args[0].untyped_storage()._cdata)
        for leaf in tree_leaves(result):
            if _is_here(leaf) and leaf.untyped_storage()._cdata not in self._live:
                self._add(leaf, self._part())
        workspace, flops = self._price(func, args, kwargs, result)
        self.flops += flops
        if func.namespace in _BETWEEN_PROCESSES:
            self.hold(filter(_is_here, tree_leaves((result, kwargs))), GATHERED)
        if (found := self._traffic(func, args)) is not None:
            self.sent[found[0]] += found[1]
        if workspace is not None:
            block = Block(workspace.nbytes, workspace.part)
            self._note(_Event(block, block.nbytes))
            self._note(_Event(block, -block.nbytes))
        return result

    def __enter__(self) -> "Ledger":
        self._resize = torch.UntypedStorage.resize_
        torch.UntypedStorage.resize_ = self._resizing(self._resize)  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*raised)

    def usage(self) -> list[Usage]:
        """The fullest instant of each moment, in order; the first one where there are several."""
        held: dict[str, int] = defaultdict(int)
        now: dict[int, str] = {}
        usages = []
        for stretch in self._stretches:
            fullest = dict(held)
            for event in stretch.events:
                block = event.block
                if event.part is not None and id(block) in now:
                    held[now[id(block)]] -= block.nbytes
                    held[event.part] += block.nbytes
                    now[id(block)] = event.part
                    continue
                if id(block) not in now:
                    now[id(block)] = block.part or TEMPORARY
                held[now[id(block)]] += event.change
                if _on_device(held) > _on_device(fullest):
                    fullest = dict(held)
            usages.append(Usage(stretch.moment, {part: fullest.get(part, 0) for part in PARTS}))
        return usages

    def _adds_in_place(self, total: Any) -> bool:
        """Whether autograd, which is adding to `total`, would do so in place were no mode watching.

        Where two gradients of one tensor meet, it reuses the first if nothing else holds it, but
        under a dispatch mode the sum is a new tensor.
        """
        in_backward = torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()
        return (
            in_backward
            and isinstance(total, Tensor)
            and _references(total) == self._sole_references
        )

    def _part(self) -> str | None:
        phase = self.moment.phase
        if self._counted_as is not None:
            return self._counted_as
        return {FORWARD: None, HEAD: LOSS, UPDATE: OPTIMIZER}.get(phase, TEMPORARY)

    def _resizing(self, resize: Callable[..., Any]) -> Callable[..., Any]:
        def resize_(storage: torch.UntypedStorage, nbytes: int) -> Any:
            self._release(storage._cdata)
            result = resize(storage, nbytes)
            self._add_storage(storage, self._part())
            return result

        return resize_

    def _add(self, tensor: Tensor, part: str | None) -> None:
        self._add_storage(tensor.untyped_storage(), part)

    def _add_storage(self, storage: torch.UntypedStorage, part: str | None) -> None:
        nbytes = -(-storage.nbytes() // self._granularity) * self._granularity
        block = Block(nbytes, part)
        key = storage._cdata
        self._live[key] = block
        self._note(_Event(block, nbytes))
        weakref.finalize(storage, self._free, key, block).atexit = False

    def _free(self, key: int, block: Block) -> None:
        if self._live.get(key) is block:
            self._release(key)

    def _release(self, key: int) -> None:
        block = self._live.pop(key, None)
        if block is None:
            return
        if block.part is None:
            # Made in the forward pass: what outlives it was saved for the backward pass.
            block.part = TEMPORARY if self.moment.phase == FORWARD else SAVED
        self._note(_Event(block, -block.nbytes))

    def _note(self, event: _Event) -> None:
        self._stretches[-1].events.append(event)


def here(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def _is_here(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not isinstance(leaf, DTensor)


def _on_device(held: Mapping[str, int]) -> int:
    return sum(nbytes for part, nbytes in held.items() if part != HOST)


def _references(tensor: Tensor) -> tuple[int, int]:
    """How many hold a tensor, and how many its storage; those on the way to a mode included."""
    storage = tensor.untyped_storage()._cdata
    return tensor._use_count(), torch._C._storage_Use_Count(storage)  # type: ignore[attr-defined]


@functools.cache
def _sole_references() -> tuple[int, int]:
    """`_references` of a sum that only autograd holds, as a dispatch mode finds it."""
    found: list[tuple[int, int]] = []

    class Probe(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten.add.Tensor:
                found.append(_references(args[0]))
            return func(*args, **(kwargs or {}))

    with torch.enable_grad():
        x = torch.ones(2, requires_grad=True) * 2
        y = (x.sin() * x.cos()).sum()
    with Probe():
        y.backward()
    return found[0]

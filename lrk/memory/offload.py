"""Activations on the host between the forward and the backward pass.

Activation checkpointing keeps one tensor a layer, its input, and needs it once. So it is copied to
pinned host memory as soon as the layer has it, and comes back while the layer above it is at work
in the backward pass. Both copies run on a stream of their own beside the computation; the device
holds two of these tensors at a time, in place of one a layer.
"""

import weakref
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class HostCopies:
    """Saves for the backward pass what is saved while `saving()` is entered, in host memory.

    On a CPU, which has no other memory to spare, tensors are copied all the same: the result is
    that of a GPU.
    """

    def __init__(self) -> None:
        # Autograd owns the copies: these are the newest, and the one whose way out may not be over.
        self._newest: weakref.ref[_Copy] | None = None
        self._leaving: weakref.ref[_Copy] | None = None
        self._stream: torch.cuda.Stream | None = None

    def saving(self) -> AbstractContextManager[Any]:
        """Floating tensors that autograd saves inside go to the host. It costs a context a use."""
        return saved_tensors_hooks(self._pack, self._unpack)

    def empty_on_host(self, tensor: Tensor) -> Tensor:
        """Host memory for a copy, pinned if it is for a GPU's."""
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)

    def _pack(self, tensor: Tensor) -> Any:
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor
        if tensor.is_cuda and self._stream is None:
            self._stream = torch.cuda.Stream(tensor.device)
        copy = _Copy(tensor, self.empty_on_host(tensor), self._newest, self._stream)
        # The copy before has had a layer's time, so that nothing waits here for long.
        before = None if self._leaving is None else self._leaving()
        if before is not None:
            before.leave()
        self._newest = self._leaving = weakref.ref(copy)
        return copy

    def _unpack(self, saved: Any) -> Tensor:
        if not isinstance(saved, _Copy):
            return saved
        tensor = saved.take()
        next_needed = None if saved.before is None else saved.before()
        if next_needed is not None:
            next_needed.come_back()
        return tensor


class _Copy:
    """A tensor in host memory and, on its way there and back, on its device as well.

    Device memory is given and freed in the order of the computing stream, which waits for the
    copying stream before it frees what that reads, and before it uses what that writes.
    """

    def __init__(
        self,
        tensor: Tensor,
        host: Tensor,
        before: "weakref.ref[_Copy] | None",
        stream: torch.cuda.Stream | None,
    ) -> None:
        self.host, self.before, self.stream = host, before, stream
        self.device = tensor.device
        self.on_device: Tensor | None = tensor
        self.copied: torch.cuda.Event | None = None
        self._copy(host, tensor)

    def leave(self) -> None:
        """Free the device's memory: what computes from now on comes after the copy."""
        self._wait()
        self.on_device = None

    def come_back(self) -> None:
        """Begin the copy to the device, unless it is there."""
        if self.on_device is None:
            self.on_device = torch.empty_like(self.host, device=self.device)
            self._copy(self.on_device, self.host)

    def take(self) -> Tensor:
        """The tensor on its device. It can be taken again, after another copy."""
        self.come_back()
        self._wait()
        tensor, self.on_device = self.on_device, None
        assert tensor is not None
        return tensor

    def _copy(self, target: Tensor, source: Tensor) -> None:
        if self.stream is None:
            target.copy_(source)
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
            self.copied = self.stream.record_event()

    def _wait(self) -> None:
        if self.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(self.copied)

"""Triton's own CUDA driver and launcher over `libcuda.c`, which launches nothing.

Everything from `kernel[grid](...)` down to the driver is Triton's: the specialisation, the compiled
machine code, the packing of arguments, tensor maps, and the launch. Only in a process of its own:
whatever asks for libcuda.so.1 finds the stand-in, and Triton must not be told to interpret.
"""

import ctypes

import triton
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver

from lrk.kernels import target
from tests.kernels.launch.libcuda import NAME


class Launch(ctypes.Structure):
    """A launch as the driver was told of it: `struct launch` of libcuda.c."""

    _fields_ = (
        ("kernel", ctypes.c_char * 64),
        ("grid", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint),
        ("shared_memory", ctypes.c_uint),
        ("tensor_maps", ctypes.c_uint),
    )

    def as_dict(self) -> dict[str, object]:
        return {
            "kernel": self.kernel.decode(),
            "grid": list(self.grid),
            "threads": self.threads,
            "shared_memory": self.shared_memory,
            "tensor_maps": self.tensor_maps,
        }


_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


class StandIn:
    """Triton's active driver, with a device of each capability that libcuda.c knows."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(NAME)
        self.driver = CudaDriver()
        # What Triton asks PyTorch, whose tensors are on the CPU here.
        self.driver.get_current_device = lambda: self._device
        self.driver.get_current_stream = lambda device: 0
        self.driver.get_device_capability = self._capability
        driver.set_active(self.driver)
        # Our launchers take CPU tensors only where Triton interprets; kernels decorated before this
        # switch are compiled all the same.
        triton.knobs.runtime.interpret = True
        count = ctypes.c_int()
        self._library.cuDeviceGetCount(ctypes.byref(count))
        self.devices = {self._capability(index): index for index in range(count.value)}
        self.use((9, 0))

    def _capability(self, device: int) -> tuple[int, int]:
        return self._attribute(_MAJOR, device), self._attribute(_MINOR, device)

    def _attribute(self, attribute: int, device: int) -> int:
        value = ctypes.c_int()
        self._library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        return value.value

    def use(self, capability: tuple[int, int]) -> None:
        """Launch on the device of this capability from now on, in the tiles for it."""
        self._device = self.devices[capability]
        context = ctypes.c_void_p()
        self._library.cuDevicePrimaryCtxRetain(ctypes.byref(context), self._device)
        self._library.cuCtxSetCurrent(context)
        target.INTERPRETED = f"sm_{capability[0]}{capability[1]}"

    def take_launches(self) -> list[Launch]:
        """Those since the last time."""
        first = ctypes.POINTER(Launch)()
        count = self._library.stand_in_take_launches(ctypes.byref(first))
        return [Launch.from_buffer_copy(first[index]) for index in range(count)]

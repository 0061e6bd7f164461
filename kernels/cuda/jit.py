"""How kernels of this backend are compiled and launched: numba's options in one place.

Arithmetic that quantizes goes through `add`, `sub` and `mul`, which round once each: the
compiler would otherwise fuse a product and a sum into one rounding, and results would differ
from the other devices'. In numba's simulator they are plain float32 operations.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

try:
    from numba import cuda as _cuda
    from numba.core import config
except ImportError as error:  # pragma: no cover - numba itself is always there
    raise ImportError(
        f"device 'cuda' needs numba-cuda: pip install 'caffe-quant[cuda]' ({error})"
    ) from None

__all__ = [
    "SIMULATED",
    "THREADS",
    "add",
    "cuda",
    "device_count",
    "device_jit",
    "device_name",
    "grid",
    "kernel",
    "launch",
    "mul",
    "on_compile",
    "round_half_away",
    "round_half_even",
    "select_device",
    "streams",
    "sub",
    "survives_fork",
]

cuda: Any = _cuda  # what it offers depends on whether it is simulated
#: Whether kernels run in numba's simulator: a Python thread for each thread of a block.
SIMULATED = bool(getattr(config, "ENABLE_CUDASIM", False))
# small data fills no device, which is no reason for numba to warn of
vars(config)["CUDA_LOW_OCCUPANCY_WARNINGS"] = 0
#: Threads of a block where a kernel has no reason to take others.
THREADS = 4 if SIMULATED else 256
#: Blocks for each multiprocessor, at most, of kernels that stride over their data.
_BLOCKS = 8


def device_name() -> str:
    """Return the name of the current device, or nothing where there is none."""
    if SIMULATED:
        return "numba's simulator"
    if not cuda.is_available():
        return ""
    name = cuda.get_current_device().name
    return name.decode() if isinstance(name, bytes) else str(name)


def device_count() -> int:
    """Return how many devices there are."""
    return 1 if SIMULATED else len(cuda.gpus)


def select_device(number: int) -> None:
    """Let this thread compute on a device."""
    cuda.select_device(number)


def survives_fork() -> bool:
    """Return, in a forked child, whether it can use devices: not if the parent has a context."""
    return SIMULATED or cuda.cudadrv.driver.driver.pid is None


def kernel(function: Callable) -> Any:
    """Compile a kernel. No fastmath: it deletes NaN checks and changes rounding."""
    return cuda.jit(function)


def device_jit(function: Callable) -> Any:
    """Compile a function that kernels call."""
    return cuda.jit(device=True)(function)


def grid(count: int, threads: int = THREADS, most: int = _BLOCKS) -> int:
    """Return how many blocks a kernel takes that strides over `count` pieces of work.

    `most` is how many a multiprocessor gets, at most.
    """
    blocks = -(-count // threads)
    if SIMULATED:
        return max(min(blocks, 2), 1)
    processors = cuda.get_current_device().MULTIPROCESSOR_COUNT
    return max(min(blocks, most * processors), 1)


def streams(count: int) -> int:
    """Return how many blocks a kernel takes that streams values, four a thread at a time.

    More than are resident at once: of many short waves the last leaves few multiprocessors idle.
    """
    return grid(-(-count // 4), THREADS, 64)


def launch(function: Any, blocks: Any, threads: Any, *arguments: Any) -> None:
    """Run a kernel on the current device's default stream.

    Raises
    ------
    RuntimeError
        If the device fails: names the kernel and the shapes of its arrays.
    """
    try:
        function[blocks, threads](*arguments)
    except Exception as error:
        if isinstance(error, MemoryError) or "OUT_OF_MEMORY" in str(error).upper():
            raise MemoryError(f"the CUDA device is out of memory: {error}") from None
        shapes = ", ".join(str(a.shape) for a in arguments if hasattr(a, "shape") and a.shape)
        name = getattr(function, "__name__", None) or function.py_func.__name__
        raise RuntimeError(f"CUDA kernel '{name}' failed on {shapes}: {error}") from error


def on_compile(callback: Callable[[str, int, float], None]) -> AbstractContextManager[None]:
    """Do nothing: kernels of a device are compiled in a second or two, and not cached."""
    return nullcontext()


if SIMULATED:

    def add(a: Any, b: Any) -> Any:
        """Return ``a + b`` of float32, rounded once."""
        return np.float32(a) + np.float32(b)

    def sub(a: Any, b: Any) -> Any:
        """Return ``a - b`` of float32, rounded once."""
        return np.float32(a) - np.float32(b)

    def mul(a: Any, b: Any) -> Any:
        """Return ``a * b`` of float32, rounded once."""
        return np.float32(a) * np.float32(b)

    def round_half_away(v: Any) -> Any:
        """Return the nearest integer of a float32, halves away from zero."""
        t = np.trunc(v)
        return t + np.copysign(np.float32(np.abs(v - t) >= np.float32(0.5)), v)

    def round_half_even(v: Any) -> Any:
        """Return the nearest integer of a float32, halves to even."""
        return np.rint(v)

else:
    from numba.cuda import libdevice

    @device_jit
    def add(a, b):
        """Return ``a + b`` of float32, rounded once."""
        return libdevice.fadd_rn(a, b)

    @device_jit
    def sub(a, b):
        """Return ``a - b`` of float32, rounded once."""
        return libdevice.fsub_rn(a, b)

    @device_jit
    def mul(a, b):
        """Return ``a * b`` of float32, rounded once."""
        return libdevice.fmul_rn(a, b)

    @device_jit
    def round_half_away(v):
        """Return the nearest integer of a float32, halves away from zero."""
        return libdevice.roundf(v)

    @device_jit
    def round_half_even(v):
        """Return the nearest integer of a float32, halves to even."""
        return libdevice.rintf(v)

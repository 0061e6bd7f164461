"""How functions of this backend are compiled: the numba options in one place."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# threads that wait spin for less than a millisecond, from one step of a net to the next, and
# then sleep: else they would take the cores from decoding and from other libraries
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
import numba
import numpy as np
from numba.core import config, event
from numba.core.compiler_lock import global_compiler_lock as compiler_lock

from kernels.cpu.cache import cache_for
from kernels.cpu.cache import problem as cache_problem
from kernels.dispatch import DeviceError, check_usable
from kernels.rounding import round_half_away as _round_half_away

__all__ = [
    "cache_problem",
    "compiler_lock",
    "jit",
    "on_compile",
    "parallel_entry",
    "parallel_jit",
    "prange",
    "round_float32",
    "round_half_away",
    "survives_fork",
]

if vars(config)["DISABLE_JIT"]:
    raise DeviceError(
        "device 'cpu' needs numba to compile its kernels, which NUMBA_DISABLE_JIT=1 forbids: "
        "unset it, or choose device 'reference'"
    )

prange = numba.prange

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def jit(function: Callable, **options: Any) -> Any:
    """Compile for one core. No fastmath: it deletes NaN checks and changes rounding."""
    dispatcher = numba.njit(**_OPTIONS, **options)(function)
    dispatcher._cache = cache_for(function)  # where numba's `enable_caching` puts its own
    return dispatcher


def parallel_jit(function: Callable) -> Any:
    """Compile with `prange` loops spread over the cores; call it in `parallel_entry`."""
    return jit(function, parallel=True)


round_half_away = jit(_round_half_away)

#: The float32 below one half.
_ALMOST_HALF = np.float32(0.49999997)


@jit
def round_float32(v):
    """Round a float32 as `round_half_away` does, in fewer instructions.

    The sum with the float32 below one half, itself rounded, passes the next integer from one half
    on, for every float32.
    """
    return np.trunc(v + np.copysign(_ALMOST_HALF, v))


_LOCK = threading.Lock()


def _layer() -> str:
    """Return the threading layer that numba has chosen: nothing before a first use."""
    try:
        return str(numba.threading_layer())
    except ValueError:
        return ""


@contextmanager
def parallel_entry() -> Iterator[None]:
    """Let threads run `prange` loops at once where numba's layer is made for that.

    The layer "workqueue" aborts the process if a second thread enters; which layer it is, is known
    after the first loop.

    Raises
    ------
    DeviceError
        In a process forked from one that has used the layer "omp", where it would be killed.
    """
    check_usable("cpu")
    if _layer() in ("omp", "tbb"):
        yield
        return
    with _LOCK:
        yield


def survives_fork() -> bool:
    """Return, in a forked child, whether it can use what the parent has used.

    GNU OpenMP kills a child that enters it again; "tbb" and "workqueue" start new threads. What
    another thread of the parent was compiling or running remains locked for ever.
    """
    for lock in (compiler_lock._lock, _LOCK):
        if not lock.acquire(blocking=False):
            return False
        lock.release()
    return _layer() != "omp" or not sys.platform.startswith("linux")


class _Listener(event.Listener):
    """Counts kernels as numba compiles them, each with all that it calls; the cache is silent."""

    def __init__(self, callback: Callable[[str, int, float], None]) -> None:
        self._callback = callback
        self._depth, self._count, self._seconds, self._start = 0, 0, 0.0, 0.0

    def on_start(self, event: Any) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        self._count += 1
        self._start = time.perf_counter()
        function = event.data["dispatcher"].py_func
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__.lstrip('_')}"
        self._callback(name, self._count, self._seconds)

    def on_end(self, event: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._seconds += time.perf_counter() - self._start
            self._callback("", self._count, self._seconds)


@contextmanager
def on_compile(callback: Callable[[str, int, float], None]) -> Iterator[None]:
    """Call back before and behind each kernel that is compiled in this context."""
    with event.install_listener("numba:compile", _Listener(callback)):
        yield

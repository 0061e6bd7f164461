"""How functions of this backend are compiled: the numba options in one place."""

from __future__ import annotations

import os
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
from numba.core import config, event

from kernels.cpu.cache import cache_for
from kernels.cpu.cache import problem as cache_problem
from kernels.dispatch import DeviceError
from kernels.rounding import round_half_away as _round_half_away

__all__ = [
    "cache_problem",
    "jit",
    "on_compile",
    "parallel_entry",
    "parallel_jit",
    "prange",
    "round_half_away",
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


def _reentrant_layer() -> bool:
    """Whether a threading layer is at hand that several Python threads may enter at once."""
    for name in ("tbbpool", "omppool"):
        try:
            __import__(f"numba.np.ufunc.{name}")
        except ImportError:
            continue
        return True
    return False


_LOCK = threading.Lock()
_LOCK_NEEDED = not _reentrant_layer()


@contextmanager
def parallel_entry() -> Iterator[None]:
    """Hold other Python threads back where numba's workqueue layer would abort on them."""
    if not _LOCK_NEEDED:
        yield
        return
    with _LOCK:
        yield


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

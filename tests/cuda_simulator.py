"""Numba's CUDA simulator made quick and safe for tests."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["SIMULATED", "simulator"]

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"


class _Allocations(dict):
    """Shared arrays of a block: others wait while one thread makes an array.

    Without this two threads that come at once get an array each.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def get(self, key: Any, default: Any = None) -> Any:
        self._lock.acquire()
        found = super().get(key, default)
        if found is not None:
            self._lock.release()
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self._lock.release()


@contextmanager
def simulator() -> Iterator[None]:
    """Let the simulator's threads take turns often: they wait for each other all the time."""
    if not SIMULATED:
        yield
        return
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    made = FakeCUDAShared.__init__

    def begin(self: Any, *arguments: Any) -> None:
        made(self, *arguments)
        self._allocations = _Allocations()

    interval = sys.getswitchinterval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeCUDAShared, "__init__", begin)
        sys.setswitchinterval(1e-5)
        try:
            yield
        finally:
            sys.setswitchinterval(interval)

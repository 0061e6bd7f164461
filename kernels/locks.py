"""What several threads may fill at once: a lock for each object, which copies do not share."""

from __future__ import annotations

import os
import threading
from typing import Any
from weakref import WeakSet

import numpy as np

__all__ = ["Guarded", "Lock"]


class Lock:
    """A lock that a forked child finds free, even if another thread of the parent held it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _LOCKS.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Begin anew in a child, which has none of the threads that could release it."""
        self._lock = threading.RLock()


_LOCKS: WeakSet[Lock] = WeakSet()


def _renew() -> None:
    for lock in list(_LOCKS):
        lock.renew()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew)


class Guarded:
    """An object with a lock; copies and pickles are of one moment, and have a lock of their own.

    Of two such objects one at a time is locked: so no order of locking can be wrong.
    """

    def __init__(self) -> None:
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes; arrays are copied, for they may be changed in place."""
        with self._lock:
            return {
                name: value.copy() if isinstance(value, np.ndarray) else value
                for name, value in vars(self).items()
                if name != "_lock"
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes of another."""
        vars(self).update(state)
        self._lock = Lock()

"""The last few results of something that is made by a key."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Recent"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Keeps what was made for the last few keys; safe for several threads.

    Unlike `functools.lru_cache` it keeps no reference to the function that makes a value: with a
    method that would be a reference cycle, which only the garbage collector frees.

    Parameters
    ----------
    size : int
        How many values are kept.

    Examples
    --------
    >>> squares = Recent(2)
    >>> [squares.of(n, lambda: n * n) for n in (1, 2, 2, 3)]
    [1, 4, 4, 9]
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of a key; `make` makes it if it is not there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value

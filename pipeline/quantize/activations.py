"""The values of a net for many samples at once, part after part, within a budget of memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np

__all__ = ["Activations"]


class Activations:
    """Arrays by key; those beyond the budget lie in files until they are dropped.

    Parameters
    ----------
    budget : int
        Bytes to hold in memory.

    Examples
    --------
    >>> import numpy as np
    >>> with Activations(budget=8) as values:
    ...     values.put("x", np.ones(2, np.float32))
    ...     values.put("y", np.zeros(2, np.float32))  # goes to a file
    ...     values.get("y")
    array([0., 0.], dtype=float32)
    """

    def __init__(self, budget: int) -> None:
        self._room = budget
        self._arrays: dict[object, np.ndarray] = {}
        self._files: dict[object, Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def __enter__(self) -> Activations:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop everything, files too."""
        self._arrays.clear()
        self._files.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, key: object, array: np.ndarray) -> None:
        """Keep an array, which must not be changed any more; one of that key is replaced."""
        self.drop(key)
        if array.nbytes <= self._room:
            self._room -= array.nbytes
            self._arrays[key] = array
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="caffe-quant-")
        self._count += 1
        path = Path(self._folder.name) / f"{self._count}.npy"
        np.save(path, array)
        self._files[key] = path

    def get(self, key: object) -> np.ndarray:
        """Return the array of a key."""
        path = self._files.get(key)
        return self._arrays[key] if path is None else np.load(path)

    def drop(self, key: object) -> None:
        """Forget the array of a key, if there is one."""
        array = self._arrays.pop(key, None)
        if array is not None:
            self._room += array.nbytes
        path = self._files.pop(key, None)
        if path is not None:
            path.unlink()

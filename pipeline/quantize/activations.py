"""The values of a net for many samples at once, part after part, within a budget of memory."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from types import TracebackType
from typing import IO

import numpy as np

from pipeline.errors import PipelineError

__all__ = ["Activations"]


@dataclass(frozen=True)
class _Place:
    """Where an array lies in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Activations:
    """Arrays by key; those beyond the budget lie in a file until they are dropped.

    Parameters
    ----------
    budget : int
        Bytes to hold in memory.

    Examples
    --------
    >>> import numpy as np
    >>> with Activations(budget=8) as values:
    ...     values.put("x", np.ones(2, np.float32))
    ...     values.put("y", np.zeros(2, np.float32))  # goes to the file
    ...     values.get("y")
    array([0., 0.], dtype=float32)
    """

    def __init__(self, budget: int) -> None:
        self._room = budget
        self._arrays: dict[object, np.ndarray] = {}
        self._places: dict[object, _Place] = {}
        self._file: IO[bytes] | None = None
        self._end = 0
        self._free: dict[int, list[int]] = {}  # offsets by size

    def __enter__(self) -> Activations:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop everything, the file too."""
        self._arrays.clear()
        self._places.clear()
        if self._file is not None:
            self._file.close()

    def put(self, key: object, array: np.ndarray) -> None:
        """Keep an array, which must not be changed any more; one of that key is replaced."""
        self.drop(key)
        if array.nbytes <= self._room:
            self._room -= array.nbytes
            self._arrays[key] = array
            return
        free = self._free.get(array.nbytes)
        at = free.pop() if free else self._end
        self._end = max(self._end, at + array.nbytes)
        try:
            if self._file is None:
                # without a name: it is gone with the process, however that ends
                self._file = tempfile.TemporaryFile(prefix="caffe-quant-")  # noqa: SIM115
            self._file.seek(at)
            self._file.write(np.ascontiguousarray(array).data)
        except OSError as error:
            raise PipelineError(
                f"{tempfile.gettempdir()}: cannot hold what improve.memory does not: "
                f"{error.strerror}; allow more memory, or name another folder by TMPDIR"
            ) from None
        self._places[key] = _Place(at, array.shape, array.dtype)

    def get(self, key: object) -> np.ndarray:
        """Return the array of a key."""
        place = self._places.get(key)
        if place is None:
            return self._arrays[key]
        assert self._file is not None
        out = np.empty(place.shape, place.dtype)
        self._file.seek(place.offset)
        self._file.readinto(out.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
        return out

    def drop(self, key: object) -> None:
        """Forget the array of a key, if there is one."""
        array = self._arrays.pop(key, None)
        if array is not None:
            self._room += array.nbytes
        place = self._places.pop(key, None)
        if place is not None:
            self._free.setdefault(place.size, []).append(place.offset)

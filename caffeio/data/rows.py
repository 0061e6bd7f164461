"""The rows of an array that stays in its file."""

from __future__ import annotations

import math
import os
import weakref
from pathlib import Path

import numpy as np

__all__ = ["FileRows"]


class FileRows:
    """An array in a file, read a row at a time; safe from several threads.

    Not mapped: where a mapped file becomes shorter, reading it ends the process.

    Parameters
    ----------
    path : Path
    offset : int
        Bytes before the first row.
    shape : tuple of int
        Of the whole array, which lies row by row.
    dtype : dtype

    Attributes
    ----------
    shape, dtype, ndim
        As of an array.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.path, self.offset, self.shape, self.dtype = path, offset, shape, dtype
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    @property
    def ndim(self) -> int:
        """Axes."""
        return len(self.shape)

    def __reduce__(self) -> tuple[object, ...]:
        """Open the file anew where a copy is made: a descriptor's number means nothing there."""
        return FileRows, (self.path.absolute(), self.offset, self.shape, self.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        """Read a row.

        Raises
        ------
        EOFError
            If the file has become shorter.
        OSError
            If it cannot be read.
        """
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        parts, at, left = [], self.offset + index * size, size
        while left:  # one read gives 2 GiB at most
            part = os.pread(self._file, left, at)
            if not part:
                raise EOFError("the file has become shorter since it was opened")
            parts.append(part)
            at, left = at + len(part), left - len(part)
        return np.frombuffer(b"".join(parts), self.dtype).reshape(self.shape[1:])

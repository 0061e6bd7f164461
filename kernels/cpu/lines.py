"""Arrays as lines of one length in memory, read in blocks, whatever order their axes have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kernels.cpu.jit import jit

__all__ = ["BLOCK", "SHORT", "Lines", "block", "lines_of"]

#: Values in a block, at most.
BLOCK = 1 << 12
#: Lines shorter than this are copied.
SHORT = 1 << 9

_FIRST = np.zeros(1, np.int64)


@jit
def block(starts, length, b):
    """Return where a block begins and ends; none reaches into another line."""
    per = (length + BLOCK - 1) // BLOCK
    start, part = starts[b // per], b % per
    return start + part * BLOCK, start + min((part + 1) * BLOCK, length)


@dataclass(frozen=True)
class Lines:
    """Data as lines of one length in memory.

    Attributes
    ----------
    owner : float32 array
        It keeps the memory alive.
    address : int
        Of the first value of the first line.
    starts : int64 array (lines,)
        Where they begin, in values from the first.
    length : int
    """

    owner: np.ndarray
    address: int
    starts: np.ndarray
    length: int


@lru_cache(maxsize=256)
def _starts(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int
) -> tuple[np.ndarray, int] | None:
    """Return where the lines of an array begin, in values, and their length; None if short."""
    axis, length = len(shape), 1
    while axis and strides[axis - 1] == itemsize * length:
        axis -= 1
        length *= shape[axis]
    aligned = all(step >= 0 and step % itemsize == 0 for step in strides[:axis])
    if not axis or length < SHORT or not aligned:
        return None
    starts = np.zeros(1, np.int64)
    for size, step in zip(shape[:axis], strides[:axis], strict=True):
        starts = (starts[:, None] + np.arange(size) * (step // itemsize)).reshape(-1)
    return starts, length


def lines_of(x: np.ndarray) -> Lines:
    """Return an array as lines; it is copied if they were short."""
    lines = None if x.flags.c_contiguous else _starts(x.shape, x.strides, x.itemsize)
    if lines is None:
        flat = np.ascontiguousarray(x).reshape(-1)  # reshape alone may give a view of stride 0
        return Lines(flat, flat.ctypes.data, _FIRST, flat.size)
    return Lines(x, x.ctypes.data, *lines)

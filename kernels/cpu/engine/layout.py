"""From Caffe's layout, channels first, into images with channels last, and back."""

from __future__ import annotations

import numpy as np

from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange

__all__ = ["enter", "enter_last", "leave", "leave_last"]

#: Channels moved together: they share the cache lines that are written.
_CHANNELS = 32


@jit
def _turn_in(rows, line, add):
    channels, width = rows.shape
    if channels <= 4:  # an image: line by line there is nothing to share
        for c in range(channels):
            row = rows[c]
            for j in range(width):
                line[j, c] = row[j] + add
        return
    for first in range(0, channels, _CHANNELS):
        last = min(first + _CHANNELS, channels)
        for j in range(width):
            for c in range(first, last):
                line[j, c] = rows[c, j] + add


@jit
def _turn_out(line, rows, less):
    width, channels = line.shape
    for first in range(0, width, _CHANNELS):
        last = min(first + _CHANNELS, width)
        for c in range(channels):
            for j in range(first, last):
                rows[c, j] = line[j, c] - less


@parallel_jit
def _enter(x, view, add):
    n, height = view.shape[:2]
    for job in prange(n * height):
        index = np.int64(job)
        i, r = index // height, index % height
        _turn_in(x[i, :, r], view[i, r], add)


@parallel_jit
def _leave(view, out, less):
    n, height = view.shape[:2]
    for job in prange(n * height):
        index = np.int64(job)
        i, r = index // height, index % height
        _turn_out(view[i, r], out[i, :, r], less)


def enter_last(x: np.ndarray, view: np.ndarray, add: int = 0) -> None:
    """Copy (N, H, W, C) into the view of an image; as `enter`."""
    if view.dtype == np.float32:
        np.copyto(view, x)
    elif view.dtype == np.uint8:
        np.add(x.view(np.uint8), np.uint8(add % 256), out=view)  # wraps as it should
    else:
        np.add(x, np.int16(add), out=view, dtype=np.int16)


def leave_last(view: np.ndarray, out: np.ndarray, less: int = 0) -> None:
    """Copy the view of an image into an array (N, H, W, C); undoes `enter_last`."""
    if view.dtype == np.float32:
        np.copyto(out, view)
    elif view.dtype == np.uint8:
        np.subtract(view, np.uint8(less % 256), out=out.view(np.uint8))
    else:
        np.subtract(view, np.int16(less), out=out, dtype=np.int16, casting="unsafe")


def enter(x: np.ndarray, view: np.ndarray, add: int = 0) -> None:
    """Copy (N, C, H, W) into the view (N, H, W, C) of an image.

    Parameters
    ----------
    x : float32 or int8 array
    view : float32, int16 or uint8 array
    add : int
        What integers are stored with.
    """
    kind = np.float32 if x.dtype == np.float32 else np.int16
    with parallel_entry():
        _enter(x, view, kind(add))


def leave(view: np.ndarray, out: np.ndarray, less: int = 0) -> None:
    """Copy the view (N, H, W, C) of an image into an array (N, C, H, W); undoes `enter`."""
    kind = np.float32 if view.dtype == np.float32 else np.int16
    with parallel_entry():
        _leave(view, out, kind(less))

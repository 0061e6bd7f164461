"""From Caffe's layout, channels first, into images with channels last, and back."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from kernels.cpu.codegen import transpose
from kernels.cpu.codegen.native import call
from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange

__all__ = ["enter", "enter_last", "leave", "leave_last"]

#: Positions that one job transposes.
_POSITIONS = 512
_LLVM = {
    np.dtype(np.float32): "float",
    np.dtype(np.int8): "i8",
    np.dtype(np.uint8): "i8",
    np.dtype(np.int16): "i16",
}  # by the types themselves: their names take microseconds


@parallel_jit
def _turn(function, sources, targets, counts, steps, channels, inwards, add):
    """Transpose blocks of positions, at given addresses, into the image or out of it."""
    for job in prange(counts.size):
        j = np.int64(job)
        count = counts[j]
        rows, columns = (channels, count) if inwards else (count, channels)
        call(function, (targets[j], steps[0], sources[j], steps[1], rows, columns, add))


@jit
def _enter_few(x, view, add):
    """Copy x (N, C, H, W), plus a number, into the interior of an image, (N, H, W, C)."""
    n, channels, height, width = x.shape
    for i in range(n):
        for c in range(channels):
            for r in range(height):
                line, row = view[i, r], x[i, c, r]
                for j in range(width):
                    line[j, c] = row[j] + add


@jit
def _leave_few(view, out, less):
    """Copy the interior of an image (N, H, W, C), less a number, into out (N, C, H, W)."""
    n, channels, height, width = out.shape
    for i in range(n):
        for c in range(channels):
            for r in range(height):
                line, row = view[i, r], out[i, c, r]
                for j in range(width):
                    row[j] = line[j, c] - less


@lru_cache(maxsize=256)
def _runs(
    shape: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut the positions of a view (N, H, W, C) into runs that lie together.

    Returns
    -------
    images, firsts, counts : int64 array (R,)
        Image, first position and length of each run. The shorter ones at the ends lie over
        those before, so that all are as long as a block if the image is.
    """
    n, height, width = shape[:3]
    together = strides[1] == width * strides[2]
    line = height * width if together else width
    starts = np.arange(0, line, _POSITIONS)
    counts = np.minimum(_POSITIONS, line - starts)
    back = np.maximum(0, np.minimum(starts, max(transpose.SIZES) - counts))
    starts, counts = starts - back, counts + back
    lines = np.arange(1 if together else height) * width
    firsts = (lines[:, None] + starts).reshape(-1)
    images = np.repeat(np.arange(n), firsts.size)
    return images, np.tile(firsts, n), np.tile(np.tile(counts, lines.size), n)


def _turns(image: np.ndarray, view: np.ndarray, add: int, *, inwards: bool) -> bool:
    """Transpose (N, C, H, W) into a view of an image or back; False if it is too small."""
    images, firsts, counts = _runs(view.shape, view.strides)
    channels, width = view.shape[3], view.shape[2]
    if not view.size:
        return False
    sizes = [s for s in transpose.SIZES if s <= channels and s <= counts.min()]
    if not sizes:
        return False
    rows, columns = firsts // width, firsts % width
    flat = image.ctypes.data + images * image.strides[0] + firsts * image.itemsize
    step = view.strides
    packed = view.ctypes.data + images * step[0] + rows * step[1] + columns * step[2]
    kinds = _LLVM[image.dtype], _LLVM[view.dtype]
    strides = np.array([view.strides[2], image.strides[1]])
    source, target, steps = (flat, packed, strides) if inwards else (packed, flat, strides[::-1])
    function = transpose.compiled(*(kinds if inwards else kinds[::-1]), sizes[0])
    with parallel_entry():
        _turn(function, source, target, counts, np.ascontiguousarray(steps), channels, inwards, add)
    return True


def enter(x: np.ndarray, view: np.ndarray, add: int = 0) -> None:
    """Copy (N, C, H, W) into the view (N, H, W, C) of an image.

    This is where arrays come into the engine, from wherever they come: what lies behind it
    computes with addresses, so that the order, shape and type of an array are settled here.

    Parameters
    ----------
    x : float32 or int8 array
        In any order; what does not lie in C order is copied first.
    view : float32, int16, int8 or uint8 array
    add : int
        What integers are stored with.

    Raises
    ------
    TypeError
        If `x` has a type that the image does not hold.
    ValueError
        If `x` has another shape than the image.
    """
    n, height, width, channels = view.shape
    if x.shape != (n, channels, height, width):
        raise ValueError(f"an array of shape {x.shape} does not fit the image {view.shape}")
    if x.dtype != (np.float32 if view.dtype == np.float32 else np.int8):
        raise TypeError(f"an array of {x.dtype} does not fit an image of {view.dtype}")
    x = np.require(x, requirements=("C_CONTIGUOUS", "ALIGNED"))
    if not _turns(x, view, add, inwards=True):
        _enter_few(*_as_bits(x, view), np.int16(add))


def leave(view: np.ndarray, out: np.ndarray, less: int = 0) -> None:
    """Copy the view (N, H, W, C) of an image into an array (N, C, H, W); undoes `enter`."""
    if not _turns(out, view, -less, inwards=False):
        _leave_few(*_as_bits(view, out), np.int16(less))


def _as_bits(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return floats as integers of the same bits: arithmetic would change sums that look NaN."""
    if one.dtype != np.float32:
        return one, other
    return one.view(np.int32), other.view(np.int32)


def enter_last(x: np.ndarray, view: np.ndarray, add: int = 0) -> None:
    """Copy (N, H, W, C) into the view of an image; as `enter`."""
    if view.dtype == np.float32:
        np.copyto(view, x)
    elif view.itemsize == 1:  # wraps as it should
        np.add(x.view(np.uint8), np.uint8(add % 256), out=view.view(np.uint8))
    else:
        np.add(x, np.int16(add), out=view, dtype=np.int16)


def leave_last(view: np.ndarray, out: np.ndarray, less: int = 0) -> None:
    """Copy the view of an image into an array (N, H, W, C); undoes `enter_last`."""
    if view.dtype == np.float32:
        np.copyto(out, view)
    elif view.itemsize == 1:
        np.subtract(view.view(np.uint8), np.uint8(less % 256), out=out.view(np.uint8))
    else:
        np.subtract(view, np.int16(less), out=out, dtype=np.int16, casting="unsafe")

"""Convolution of stride 1 in float32 over planes as they lie: nothing is turned or packed.

Windows of one value read the data itself. Larger ones read planes with their padding, all positions
of a padded row, those beyond the last column among them: these are left out in the end.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu.codegen import points
from kernels.cpu.codegen.microkernels import MicroKernel, choose
from kernels.cpu.codegen.native import call
from kernels.cpu.jit import jit
from kernels.cpu.threads import spread

__all__ = ["conv_points", "conv_windows", "fits_planes"]

#: Positions of a job: what it reads of the planes should stay near the core.
_POSITIONS = 256


@lru_cache(maxsize=64)
def _codes(kernel: MicroKernel, outs: int, windows: bool) -> np.ndarray:
    """Return addresses for whole and last blocks of outputs, one and two vectors of positions."""
    sizes = kernel.rows, outs % kernel.rows or kernel.rows
    codes = [[points.compiled(kernel, rows, v, windows) for v in (1, 2)] for rows in sizes]
    return np.array(codes)


@jit
def _fill(codes, rows, lanes, x, w, bias, taps, y, begin, end):
    """Fill positions begin..end of y (O, P) of planes x (C, P'); blocks overlap at the end."""
    outs, size = y.shape
    channels, pitch, wide = len(x), 4 * x.shape[1], 2 * lanes
    x_at, w_at, bias_at = x.ctypes.data, w.ctypes.data, bias.ctypes.data
    y_at, taps_at = y.ctypes.data, taps.ctypes.data
    p = begin
    while p < end:
        vectors = 2 if end - p > lanes and size >= wide else 1
        at = min(p, size - vectors * lanes)
        for first in range(0, outs, rows):
            count = min(rows, outs - first)
            code = codes[0 if count == rows else 1, vectors - 1]
            into = y_at + 4 * (first * size + at), 4 * size
            weights = w_at + 4 * first * w.shape[1], 4 * w.shape[1]
            values = x_at + 4 * at, pitch, channels, bias_at + 4 * first
            if taps.size > 1:
                call(code, (*into, *weights, *values, taps_at, taps.size))
            else:
                call(code, (*into, *weights, *values))
        p += vectors * lanes


def _convolve(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, taps: np.ndarray, y: np.ndarray
) -> None:
    """Convolve planes (N, C, P') to y (N, O, P)."""
    kernel, size = choose("float"), y.shape[2]
    codes = _codes(kernel, len(w), taps.size > 1)
    step = max(_POSITIONS, 2 * kernel.lanes)
    spread([
        partial(_fill, codes, kernel.rows, kernel.lanes, x[i], w, bias, taps, y[i], p,
                min(p + step, size))
        for i in range(len(x)) for p in range(0, size, step)
    ])  # fmt: skip


def fits_planes(shape: tuple[int, ...], w: np.ndarray, g: ConvGeometry) -> bool:
    """Whether (N, C, H, W) and weights suit the functions below: all positions fill a vector."""
    positions = g.out_size[0] * (shape[3] + 2 * g.pad[1])
    alone = g.group == 1 and g.stride == (1, 1)
    return alone and bool(shape[0] and w.size) and positions >= choose("float").lanes


def conv_points(x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Convolve (N, C, H, W) with weights (O, C, 1, 1); see `fits_planes`."""
    n, c, height, width = x.shape
    w, bias = np.ascontiguousarray(w.reshape(len(w), -1)), np.ascontiguousarray(bias)
    planes = np.ascontiguousarray(x).reshape(n, c, -1)
    y = np.empty((n, len(w), height * width), np.float32)
    _convolve(planes, w, bias, np.zeros(1, np.int64), y)
    return y.reshape(n, len(w), height, width)


def conv_windows(x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """Convolve (N, C, H, W) with weights (O, C, kh, kw), stride 1; see `fits_planes`."""
    n, c, height, width = x.shape
    (pad_h, pad_w), (rows, columns) = g.pad, g.out_size
    pitch = width + 2 * pad_w
    # a row more: windows of positions beyond the last column reach into it
    padded = np.zeros((n, c, height + 2 * pad_h + 1, pitch), np.float32)
    padded[:, :, pad_h : pad_h + height, pad_w : pad_w + width] = x
    u, v = (np.arange(k) * d for k, d in zip(g.kernel, g.dilation, strict=True))
    taps = (4 * (u[:, None] * pitch + v)).reshape(-1).astype(np.int64)
    w, bias = np.ascontiguousarray(w.reshape(len(w), -1)), np.ascontiguousarray(bias)
    y = np.empty((n, len(w), rows * pitch), np.float32)
    _convolve(padded.reshape(n, c, -1), w, bias, taps, y)
    return np.ascontiguousarray(y.reshape(n, len(w), rows, pitch)[..., :columns])

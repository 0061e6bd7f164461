"""1x1 convolution in float32 over planes as they lie: nothing is copied, turned or packed."""

from __future__ import annotations

from functools import partial

import numpy as np

from kernels.cpu.codegen import points
from kernels.cpu.codegen.microkernels import choose
from kernels.cpu.codegen.native import call
from kernels.cpu.jit import jit
from kernels.cpu.threads import spread

__all__ = ["conv_points"]

#: Positions of a job: what it reads of the planes should stay near the core.
_POSITIONS = 256


@jit
def _fill(codes, rows, lanes, x, w, bias, y, begin, end):
    """Fill positions begin..end of y (O, P) of x (C, P); blocks overlap at the end of a row."""
    outs, channels = w.shape
    size, wide = x.shape[1], 2 * lanes
    places = x.ctypes.data, w.ctypes.data, bias.ctypes.data, y.ctypes.data
    p = begin
    while p < end:
        vectors = 2 if end - p > lanes and size >= wide else 1
        at = min(p, size - vectors * lanes)
        for first in range(0, outs, rows):
            count = min(rows, outs - first)
            code = codes[0 if count == rows else 1, vectors - 1]
            into = places[3] + 4 * (first * size + at), 4 * size
            weights = places[1] + 4 * first * channels, 4 * channels
            values = places[0] + 4 * at, 4 * size
            call(code, (*into, *weights, *values, channels, places[2] + 4 * first))
        p += vectors * lanes


def conv_points(x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Convolve (N, C, H, W) with weights (O, C, 1, 1); a plane fills a vector at least."""
    kernel, outs = choose("float"), len(w)
    x, w, bias = (np.ascontiguousarray(a) for a in (x, w.reshape(outs, -1), bias))
    size = x.shape[2] * x.shape[3]
    y = np.empty((len(x), outs, size), np.float32)
    codes = np.array(
        [
            [points.compiled(kernel, rows, vectors) for vectors in (1, 2)]
            for rows in (kernel.rows, outs % kernel.rows or kernel.rows)
        ]
    )
    planes = x.reshape(len(x), -1, size)
    step = max(_POSITIONS, 2 * kernel.lanes)
    spread([
        partial(_fill, codes, kernel.rows, kernel.lanes, planes[i], w, bias, y[i], p,
                min(p + step, size))
        for i in range(len(x)) for p in range(0, size, step)
    ])  # fmt: skip
    return y.reshape(len(x), outs, *x.shape[2:])

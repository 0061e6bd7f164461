"""Float32 convolution of each channel alone, from planes to planes: rows stay as they lie.

Channels last, where the engine works, turning the layout both ways would take longer than the few
products of such a layer.
"""

from __future__ import annotations

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu.codegen import planes
from kernels.cpu.codegen.microkernels import choose
from kernels.cpu.codegen.native import call
from kernels.cpu.held import Held, address
from kernels.cpu.jit import parallel_entry, parallel_jit, prange

__all__ = ["conv_planes", "held_planes"]

#: So many jobs, so that cores finish together.
_JOBS = 16
#: Machine code grows with the taps.
_MOST_TAPS = 49


@parallel_jit
def _convolve(spread, plane, x, w, bias, taps, parts, sizes, y):
    """Convolve planes (P, H, W), each with its weights (P', taps) in turn."""
    rows, row, first, count, room, step = sizes
    channels, size, width = len(w), x.shape[1] * x.shape[2], x.shape[2]
    jobs = min(len(x), _JOBS)
    for job in prange(jobs):
        memory = np.zeros(rows * row + room, np.float32)  # what is padding stays so
        last = np.empty(size + room, np.float32)
        into = address(memory) + 4 * first * row
        for p in range(job * len(x) // jobs, (job + 1) * len(x) // jobs):
            begin = address(x[p])
            if (len(x) - 1 - p) * size < room:  # behind x nothing may be read
                last[:size] = x[p].reshape(-1)
                begin = address(last)
            call(spread, (begin, into, count, 4 * width, 4 * row, len(parts), address(parts)))
            c = p % channels
            lines = (address(memory), address(taps), address(w[c]), address(bias[c:]))
            call(plane, (*lines, address(y[p]), y.shape[1], y.shape[2], 4 * step * row))


def held_planes(shape: tuple[int, ...], g: ConvGeometry) -> Held | None:
    """Return how planes of (N, C, H, W) are held, a channel a group; None if they cannot be."""
    held = Held.of(g, (shape[2], shape[3]), choose("float").lanes)
    return held if held is not None and held.taps.size <= _MOST_TAPS else None


def conv_planes(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry, held: Held
) -> np.ndarray:
    """Convolve (N, C, H, W) with weights (C, 1, kh, kw), a channel a group."""
    n, c, height, width = x.shape
    kernel = choose("float")
    y = np.empty((n * c, *g.out_size), np.float32)
    functions = planes.spread(kernel, g.stride[1]), planes.plane(kernel, held.taps.size)
    lines = np.ascontiguousarray(x).reshape(n * c, height, width)
    weights, starts = np.ascontiguousarray(w.reshape(c, -1)), np.ascontiguousarray(bias)
    sizes = held.rows, held.row, held.first, held.count, held.room, g.stride[0]
    with parallel_entry():
        _convolve(*functions, lines, weights, starts, 4 * held.taps, held.parts, sizes, y)
    return y.reshape(n, c, *g.out_size)

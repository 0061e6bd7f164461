"""Float32 convolution from channels first to channels first: windows as columns, BLAS multiplies.

The engine works on channels last; for one run, turning data and results takes longer than copying
each window to a column, as Caffe does: here some rows of outputs at a time, so that columns stay
in the cache. Windows of one value need no copy.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu.codegen import planes
from kernels.cpu.codegen.microkernels import choose
from kernels.cpu.codegen.native import call
from kernels.cpu.held import Held, address
from kernels.cpu.jit import jit
from kernels.cpu.threads import spread

__all__ = ["conv_columns", "held_columns", "points"]

#: Values of a strip of columns, or products where windows need no copy; and positions at least.
_VALUES, _PRODUCTS, _POSITIONS = 1 << 18, 1 << 22, 128
#: Beyond so many values of all columns of an image, the engine is faster in spite of its layout.
_MOST_VALUES = 3 << 18


@jit
def _fill(spread, copy, x, parts, windows, sizes, columns):
    """Copy windows of x (C, H, W) to columns (C, taps, positions and a margin)."""
    rows, row, skip, first, count, room, step, out_rows, out_width = sizes
    size, width = x.shape[1] * x.shape[2], x.shape[2]
    memory = np.zeros(rows * row + room, np.float32)  # what is padding stays so
    last = np.empty(size + room, np.float32)
    into = address(memory) + 4 * first * row
    for c in range(len(x)):
        begin = address(x[c])
        if (len(x) - 1 - c) * size < room:  # behind x nothing may be read
            last[:size] = x[c].reshape(-1)
            begin = address(last)
        lines = (begin + 4 * skip * width, into, count, 4 * width, 4 * row)
        call(spread, (*lines, len(parts), address(parts)))
        lines = (address(memory), address(columns[c]), out_rows, 4 * step * row, 4 * out_width)
        call(copy, (*lines, len(windows), address(windows)))


def _columns(x: np.ndarray, g: ConvGeometry, held: Held, rows: slice) -> np.ndarray:
    """Return the windows of x (C, H, W) for some rows of outputs, (C * taps, positions)."""
    kernel, width, count = choose("float"), g.out_size[1], rows.stop - rows.start
    positions = count * width
    margin = 2 * kernel.lanes
    columns = np.empty((len(x), held.taps.size, positions + margin), np.float32)
    windows = np.array(
        [(tap, t * (positions + margin), width, 1) for t, tap in enumerate(held.taps)], np.int64
    )
    # of the rows that all windows read, those of this strip, and of them those of the image
    begin = rows.start * g.stride[0]
    end = (rows.stop - 1) * g.stride[0] + (g.kernel[0] - 1) * g.dilation[0] + 1
    first = min(max(begin, held.first), end)
    inside = max(0, min(end, held.first + held.count) - first)
    if not inside:  # nothing but padding
        columns[...] = 0
    else:
        sizes = (
            end - begin, held.row, first - held.first, first - begin, inside, held.room,
            g.stride[0], count, width,
        )  # fmt: skip
        functions = planes.spread(kernel, g.stride[1]), planes.spread(kernel, 1)
        _fill(*functions, x, held.parts, windows, sizes, columns)
    return columns.reshape(len(x) * held.taps.size, -1)[:, :positions]


def _strip(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry, held: Held | None,
    rows: slice, y: np.ndarray,
) -> None:  # fmt: skip
    """Compute some rows of the outputs (O, H', W') of one group of one image."""
    y = y.reshape(len(y), -1)[:, rows.start * g.out_size[1] : rows.stop * g.out_size[1]]
    if held is None:
        columns = x.reshape(len(x), -1)[:, rows.start * x.shape[2] : rows.stop * x.shape[2]]
    else:
        columns = _columns(x, g, held, rows)
    np.matmul(w, columns, out=y)
    y += bias[:, None]


def points(g: ConvGeometry) -> bool:
    """Whether windows are single values, side by side as they lie."""
    return (g.kernel, g.stride, g.pad) == ((1, 1), (1, 1), (0, 0))


def held_columns(shape: tuple[int, ...], w: np.ndarray, g: ConvGeometry) -> Held | None:
    """Return how planes are held; None if they cannot be, or the engine is faster."""
    if w[:1].size * g.out_size[0] * g.out_size[1] > _MOST_VALUES:
        return None
    return Held.of(g, (shape[2], shape[3]), choose("float").lanes)


def conv_columns(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry, held: Held | None
) -> np.ndarray:
    """Convolve (N, C, H, W) with weights (O, C/group, kh, kw).

    `held` is None where windows are `points`. Strips are the same for any number of threads, so
    results are, too.
    """
    n, outs, (height, width) = len(x), len(w), g.out_size
    y = np.empty((n, g.group, outs // g.group, height, width), np.float32)
    by_group = np.ascontiguousarray(x).reshape(n, g.group, w.shape[1], *x.shape[2:])
    weights, biases = w.reshape(g.group, outs // g.group, -1), bias.reshape(g.group, -1)
    if held is None:
        fitting = _PRODUCTS // max(1, weights[0].size)
    else:
        fitting = _VALUES // max(1, weights.shape[2])
    step = max(1, max(_POSITIONS, fitting) // max(1, width))
    strips = [slice(i, min(i + step, height)) for i in range(0, height, step)]
    spread([
        partial(_strip, by_group[i, k], weights[k], biases[k], g, held, rows, y[i, k])
        for i in range(n) for k in range(g.group) for rows in strips
    ])  # fmt: skip
    return y.reshape(n, outs, height, width)

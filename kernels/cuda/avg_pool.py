"""2-D average pooling: an output a thread, or some threads an output where windows are large."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.arrays import empty, flat, like
from kernels.cuda.block import sum_block
from kernels.cuda.jit import THREADS, cuda, device_jit, grid, kernel, launch
from kernels.cuda.output import NUMBERS, as_float32, as_int32, put_scaled, table
from kernels.output import SUMS, CheckedStage, float_stage
from kernels.pool import PoolGeometry

__all__ = ["avg_pool2d", "avg_pool2d_int8"]

#: Windows of at least so many values are shared out.
_LARGE = 32


@device_jit
def _put_mean(out, at, total, divisor, channel, kind, stage):
    """Store an int32 sum as it is, or times the scale over the divisor."""
    if kind == SUMS:
        out[at] = total
    else:
        scale = stage[NUMBERS + channel] / divisor
        put_scaled(out, at, np.float32(np.int32(total)), scale, kind, stage)


@device_jit
def _put_quotient(out, at, total, divisor, channel, kind, stage):
    """Store a float32 sum over the divisor."""
    out[at] = total / divisor


def _means(widen: Any, zero: Any, store: Any, dtype: Any) -> Any:
    """Return the body of a kernel in which so many lanes share an output."""

    @device_jit
    def part(x, begin, top, left, size, window, lane, lanes, offset):
        """Return a lane's share of the sum of a window."""
        total = zero
        for u in range(max(top, 0), min(top + window[0], size[0])):
            first = begin + u * size[1]
            for v in range(max(left, 0) + lane, min(left + window[1], size[1]), lanes):
                total = widen(total + (widen(x[first + v]) - offset))
        return total

    @device_jit
    def body(x, sizes, window, stride, pad, lanes, offset, kind, stage, out):
        """Fill in all outputs, each by `lanes` threads; see the kernels below."""
        parts = cuda.shared.array(THREADS, dtype)
        channels, height, width, rows, columns = sizes
        t = np.int64(cuda.threadIdx.x)
        lane, outputs = t % lanes, THREADS // lanes
        # all threads of a block turn as often: they wait for each other
        for begin in range(cuda.blockIdx.x * outputs, out.size, cuda.gridDim.x * outputs):
            at = begin + t // lanes
            line, plane = at // columns, at // (rows * columns)
            top, left = line % rows * stride[0] - pad[0], at % columns * stride[1] - pad[1]
            if at < out.size:
                image = plane * height * width
                size = (height, width)
                parts[t] = part(x, image, top, left, size, window, lane, lanes, offset)
            sum_block(parts, lane, lanes)
            if lane == 0 and at < out.size:
                high = min(top + window[0], height + pad[0]) - top
                wide = min(left + window[1], width + pad[1]) - left
                store(out, at, parts[t], np.float32(high * wide), plane % channels, kind, stage)
            cuda.syncthreads()

    return body


_SUMS = _means(as_int32, np.int32(0), _put_mean, np.int32)
_FLOAT_SUMS = _means(as_float32, np.float32(0), _put_quotient, np.float32)


@kernel
def _avg_pool(x, sizes, window, stride, pad, lanes, offset, kind, stage, out):
    """Fill in the averages, or sums, of int8 planes: int32, float32 or int8 by `kind`."""
    _SUMS(x, sizes, window, stride, pad, lanes, offset, kind, stage, out)


@kernel
def _avg_pool_floats(x, sizes, window, stride, pad, lanes, offset, kind, stage, out):
    """Fill in the averages of float32 planes; sizes are (C, H, W, rows, columns)."""
    _FLOAT_SUMS(x, sizes, window, stride, pad, lanes, offset, kind, stage, out)


def _run(function: Any, x: Any, offset: Any, g: PoolGeometry, stage: CheckedStage) -> Any:
    out = empty((*x.shape[:2], *g.out_size), stage.dtype)
    if out.size:
        lanes = 1
        if g.kernel[0] * g.kernel[1] >= _LARGE:
            lanes = min(1 << (g.kernel[1] - 1).bit_length(), THREADS, 32)
        sizes = (*x.shape[1:], *g.out_size)
        parameters = sizes, g.kernel, g.stride, g.pad, lanes, offset, stage.kind, table(stage)
        launch(function, grid(out.size * lanes), THREADS, flat(x), *parameters, flat(out))
    return like(out, x)


def avg_pool2d(x: Any, g: PoolGeometry) -> Any:
    """See `kernels.avg_pool2d`."""
    return _run(_avg_pool_floats, x, np.float32(0), g, float_stage(x.shape[1]))


def avg_pool2d_int8(x: Any, x_offset: int, g: PoolGeometry, stage: CheckedStage) -> Any:
    """See `kernels.avg_pool2d_int8`."""
    return _run(_avg_pool, x, np.int32(x_offset), g, stage)

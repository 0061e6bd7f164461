"""2-D average pooling: one output plane a thread."""

from __future__ import annotations

import numpy as np

from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange
from kernels.cpu.output import stage_args, store_run
from kernels.output import CheckedStage
from kernels.pool import PoolGeometry

__all__ = ["avg_pool2d", "avg_pool2d_int8"]


@jit
def _window(index, kernel, stride, pad, size):
    """Return (first, last, padded length) of a window along one axis."""
    start = index * stride - pad
    end = min(start + kernel, size + pad)
    return max(start, 0), min(end, size), end - start


@parallel_jit
def _float(x, kernel, stride, pad, out):
    channels, out_h, out_w = out.shape
    for c in prange(channels):
        for i in range(out_h):
            top, bottom, rows = _window(i, kernel[0], stride[0], pad[0], x.shape[1])
            for j in range(out_w):
                left, right, columns = _window(j, kernel[1], stride[1], pad[1], x.shape[2])
                total = np.float32(0)
                for u in range(top, bottom):
                    for v in range(left, right):
                        total += x[c, u, v]
                out[c, i, j] = total / np.float32(rows * columns)


def avg_pool2d(x: np.ndarray, g: PoolGeometry) -> np.ndarray:
    """See `kernels.avg_pool2d`; values are added in the reference's order."""
    out = np.empty((*x.shape[:2], *g.out_size), np.float32)
    with parallel_entry():
        _float(x.reshape(-1, *x.shape[2:]), g.kernel, g.stride, g.pad, out.reshape(-1, *g.out_size))
    return out


@parallel_jit
def _int8(x, x_offset, kernel, stride, pad, stage, out):
    kind, scales, powers, low, high, q_scale, q_offset, q_low, q_high = stage
    n, channels, out_h, out_w = out.shape
    for job in prange(n * channels):
        b, c = job // channels, job % channels
        acc = np.empty(1, np.int32)
        scale = np.empty(1, np.float32)
        for i in range(out_h):
            top, bottom, rows = _window(i, kernel[0], stride[0], pad[0], x.shape[2])
            for j in range(out_w):
                left, right, columns = _window(j, kernel[1], stride[1], pad[1], x.shape[3])
                total = np.int32(0)
                for u in range(top, bottom):
                    for v in range(left, right):
                        total += np.int32(x[b, c, u, v]) - x_offset
                acc[0] = total
                scale[0] = scales[c] / np.float32(rows * columns)
                one = (kind, scale, powers, low, high, q_scale, q_offset, q_low, q_high)
                store_run(acc, np.int32(0), 0, one, out[b, c, i, j : j + 1])


def avg_pool2d_int8(
    x: np.ndarray, x_offset: int, g: PoolGeometry, stage: CheckedStage
) -> np.ndarray:
    """See `kernels.avg_pool2d_int8`."""
    out = np.empty((*x.shape[:2], *g.out_size), stage.dtype)
    with parallel_entry():
        _int8(x, np.int32(x_offset), g.kernel, g.stride, g.pad, stage_args(stage), out)
    return out

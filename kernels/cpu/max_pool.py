"""2-D maximum pooling: one plane a thread."""

from __future__ import annotations

import numpy as np

from kernels.cpu.jit import parallel_entry, parallel_jit, prange
from kernels.pool import PoolGeometry

__all__ = ["max_pool2d"]

_LOWEST = -np.finfo(np.float32).max


@parallel_jit
def _max_pool(x, kernel, stride, pad, out, where):
    """Fill in the maxima (planes, H, W), float32, and where in its plane each is, int64, or -1."""
    channels, out_h, out_w = out.shape
    height, width = x.shape[1], x.shape[2]
    for c in prange(channels):
        for i in range(out_h):
            top = i * stride[0] - pad[0]
            for j in range(out_w):
                left = j * stride[1] - pad[1]
                best, at = np.float32(_LOWEST), -1
                for u in range(max(top, 0), min(top + kernel[0], height)):
                    for v in range(max(left, 0), min(left + kernel[1], width)):
                        if x[c, u, v] > best:
                            best, at = x[c, u, v], u * width + v
                out[c, i, j], where[c, i, j] = best, at


def max_pool2d(x: np.ndarray, g: PoolGeometry) -> tuple[np.ndarray, np.ndarray]:
    """See `kernels.max_pool2d`."""
    shape = (*x.shape[:2], *g.out_size)
    out, where = np.empty(shape, np.float32), np.empty(shape, np.int64)
    flat = (-1, *g.out_size)
    with parallel_entry():
        _max_pool(
            x.reshape(-1, *x.shape[2:]),
            g.kernel,
            g.stride,
            g.pad,
            out.reshape(flat),
            where.reshape(flat),
        )
    return out, where

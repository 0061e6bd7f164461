"""2-D maximum pooling: an output a thread."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.arrays import empty, flat, like
from kernels.cuda.jit import THREADS, cuda, grid, kernel, launch
from kernels.pool import PoolGeometry

__all__ = ["max_pool2d"]

_LOWEST = -np.finfo(np.float32).max


@kernel
def _max_pool(x, size, out_size, window, stride, pad, out, where):
    """Fill in the maxima, float32, and where in its plane each lies, int64, or -1."""
    height, width = size
    for at in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        line, plane = at // out_size[1], at // (out_size[0] * out_size[1])
        top = line % out_size[0] * stride[0] - pad[0]
        left = at % out_size[1] * stride[1] - pad[1]
        begin, best, best_at = plane * height * width, _LOWEST, -1
        for u in range(max(top, 0), min(top + window[0], height)):
            for v in range(max(left, 0), min(left + window[1], width)):
                here = x[begin + u * width + v]
                if here > best:
                    best, best_at = here, u * width + v
        out[at], where[at] = best, best_at


def max_pool2d(x: Any, g: PoolGeometry) -> tuple[Any, Any]:
    """See `kernels.max_pool2d`."""
    shape, size = (*x.shape[:2], *g.out_size), (x.shape[2], x.shape[3])
    out, where = empty(shape, np.float32), empty(shape, np.int64)
    if out.size:
        geometry = size, g.out_size, g.kernel, g.stride, g.pad
        launch(_max_pool, grid(out.size), THREADS, flat(x), *geometry, flat(out), flat(where))
    return like(out, x), like(where, x)

"""2-D maximum pooling in NumPy: shifted images compared tap by tap."""

from __future__ import annotations

import numpy as np

from kernels.pool import PoolGeometry

__all__ = ["max_pool2d"]


def max_pool2d(x: np.ndarray, g: PoolGeometry) -> tuple[np.ndarray, np.ndarray]:
    """See `kernels.max_pool2d`; Caffe starts from -FLT_MAX, so infinity below never wins."""
    (kh, kw), (sh, sw), (ph, pw) = g.kernel, g.stride, g.pad
    out_h, out_w = g.out_size
    height, width = x.shape[2:]
    best = np.full((*x.shape[:2], out_h, out_w), -np.finfo(np.float32).max, np.float32)
    where = np.full(best.shape, -1, np.int64)
    for u in range(kh):
        rows = np.arange(out_h) * sh - ph + u
        in_rows = np.flatnonzero((rows >= 0) & (rows < height))
        for v in range(kw):
            columns = np.arange(out_w) * sw - pw + v
            in_columns = np.flatnonzero((columns >= 0) & (columns < width))
            at = np.ix_(np.arange(x.shape[0]), np.arange(x.shape[1]), in_rows, in_columns)
            tap = x[:, :, rows[in_rows][:, None], columns[in_columns][None, :]]
            index = rows[in_rows][:, None] * width + columns[in_columns][None, :]
            wins = tap > best[at]
            best[at] = np.where(wins, tap, best[at])
            where[at] = np.where(wins, index, where[at])
    return best, where

"""2-D average pooling in NumPy: shifted images added tap by tap."""

from __future__ import annotations

import numpy as np

from kernels.output import CheckedStage
from kernels.pool import PoolGeometry, divisors
from kernels.reference.output import store

__all__ = ["avg_pool2d", "avg_pool2d_int8"]


def _sums(x: np.ndarray, g: PoolGeometry) -> np.ndarray:
    """Add up every window, zeros outside the image, tap by tap in row order."""
    (kh, kw), (sh, sw), (ph, pw) = g.kernel, g.stride, g.pad
    out_h, out_w = g.out_size
    below = max(0, (out_h - 1) * sh + kh - x.shape[2] - ph)
    right = max(0, (out_w - 1) * sw + kw - x.shape[3] - pw)
    padded = np.pad(x, ((0, 0), (0, 0), (ph, below), (pw, right)))
    total = np.zeros((*x.shape[:2], out_h, out_w), x.dtype)
    for u in range(kh):
        for v in range(kw):
            total += padded[:, :, u:, v:][:, :, ::sh, ::sw][:, :, :out_h, :out_w]
    return total


def avg_pool2d(x: np.ndarray, g: PoolGeometry) -> np.ndarray:
    """See `kernels.avg_pool2d`."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a window outside covers nothing
        return _sums(x, g) / divisors((x.shape[2], x.shape[3]), g)


def avg_pool2d_int8(
    x: np.ndarray, x_offset: int, g: PoolGeometry, stage: CheckedStage
) -> np.ndarray:
    """See `kernels.avg_pool2d_int8`."""
    sums = _sums(x.astype(np.int32) - np.int32(x_offset), g)
    return store(sums, stage, divisors((x.shape[2], x.shape[3]), g))

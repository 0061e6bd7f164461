"""SearchN: each channel's sums in one loop for each shift, channels spread over all cores."""

from __future__ import annotations

import numpy as np

from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange

__all__ = ["shift_errors"]


@jit
def _plane(s, n, truncate, out):
    """Add the squared errors of shift n, int64 (2,), of int32 sums (P,)."""
    low, high = np.int64(0), np.int64(0)
    for i in range(s.size):
        v = np.int64(s[i])
        shifted = v >> n
        if truncate and v < 0:
            shifted = -((-v) >> n)
        kept = min(max(shifted, np.int64(-32768)), np.int64(32767))
        error = (kept << n) - v
        square = error * error
        low += square & np.int64(0xFFFFFFFF)
        high += square >> np.int64(32)
    out[0] += low
    out[1] += high


@parallel_jit
def _channels(sums, truncate, out):
    """Fill in the sums, int64 (C, 16, 2), of int32 (N, C, P)."""
    for c in prange(sums.shape[1]):
        for n in range(16):
            for image in range(sums.shape[0]):
                _plane(sums[image, c], np.int64(n + 1), truncate, out[c, n])


def shift_errors(sums: np.ndarray, truncate: bool) -> np.ndarray:
    """Return the summed squares of each shift's errors, int64 (2, C, 16), of int32 (N, C, P)."""
    out = np.zeros((sums.shape[1], 16, 2), np.int64)
    with parallel_entry():
        _channels(sums, truncate, out)
    return np.ascontiguousarray(out.transpose(2, 0, 1))

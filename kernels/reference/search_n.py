"""SearchN in NumPy."""

from __future__ import annotations

import numpy as np

__all__ = ["shift_errors"]


def shift_errors(sums: np.ndarray, truncate: bool) -> np.ndarray:
    """Return the summed squares of each shift's errors, by halves, of int32 (N, C, P).

    Returns
    -------
    int64 array (2, C, 16)
        Sums of the squares' low and high 32 bits.
    """
    s = sums.astype(np.int64)
    out = np.zeros((2, s.shape[1], 16), np.int64)
    for n in range(1, 17):
        shifted = np.sign(s) * (np.abs(s) >> n) if truncate else s >> n
        error = (np.clip(shifted, -32768, 32767) << n) - s
        square = error * error
        out[0, :, n - 1] = (square & 0xFFFFFFFF).sum(axis=(0, 2))
        out[1, :, n - 1] = (square >> 32).sum(axis=(0, 2))
    return out

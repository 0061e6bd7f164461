"""The squared errors of IFMR's candidates on data, in NumPy: the definition."""

from __future__ import annotations

import numpy as np

from kernels.rounding import round_half_away

__all__ = ["squared_errors"]


def squared_errors(
    x: np.ndarray, lows: np.ndarray, highs: np.ndarray, scales: np.ndarray
) -> np.ndarray:
    """Return the summed squared error of each candidate on data, float64 (R,).

    ``sum((round(clip(x, low, high) / scale) * scale - x)**2)`` in float32, squared and summed in
    float64.

    Parameters
    ----------
    x : float32 array (n,)
    lows, highs, scales : float32 array (R,)
    """
    losses = np.empty(scales.size)
    for r in range(scales.size):
        d = round_half_away(np.clip(x, lows[r], highs[r]) / scales[r]) * scales[r] - x
        losses[r] = np.sum(np.square(d, dtype=np.float64))
    return losses

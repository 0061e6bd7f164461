"""Observing in NumPy: the definition of what is counted where."""

from __future__ import annotations

import numpy as np

__all__ = ["collect", "count", "extremes", "hits"]


def extremes(x: np.ndarray) -> tuple[float, float, int, int]:
    """Return (least, greatest, NaNs, infinities) of a flat float32 array, not empty."""
    return float(x.min()), float(x.max()), int(np.isnan(x).sum()), int(np.isinf(x).sum())


def count(x: np.ndarray, exponent: int, half: int) -> tuple[np.ndarray, int]:
    """Return int64 counts (2 * half,) and the number of zeros.

    ``trunc(|x| * 2**-exponent)`` counts outwards from zero on the side of x's sign; the
    product by a power of two is exact in float64. Zeros go to the first positive bin.
    """
    index = (np.abs(x).astype(np.float64) * 2.0**-exponent).astype(np.int64)
    place = np.where(x < 0, half - 1 - index, half + index)
    return np.bincount(place, minlength=2 * half).astype(np.int64), int((x == 0).sum())


def hits(x: np.ndarray, sign: np.float32, threshold: np.float32) -> int:
    """Return how many values of ``sign * x`` are at least `threshold`."""
    return int((sign * x >= threshold).sum())


def collect(x: np.ndarray, sign: np.float32, threshold: np.float32) -> np.ndarray:
    """Return the values of ``sign * x`` that are at least `threshold`."""
    signed = sign * x
    return signed[signed >= threshold]

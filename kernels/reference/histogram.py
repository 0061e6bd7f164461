"""Observing in NumPy: the definition of what is counted where."""

from __future__ import annotations

import numpy as np

from kernels.histogram import Seen, exponent_for, greatest, join

__all__ = ["count"]


def count(
    x: np.ndarray, counts: np.ndarray, exponent: int, ends: tuple[np.ndarray, np.ndarray], tail: int
) -> Seen:
    """Add data to the counts of a histogram, in place, having joined bins if it needs wider ones.

    ``trunc(|x| * 2**-exponent)`` counts outwards from zero on the side of x's sign; the
    product by a power of two is exact in float64. Zeros go to the first positive bin.

    Parameters
    ----------
    x : float32 array, any shape
        Not empty. If it holds NaN or infinity, nothing is counted.
    counts : int64 array (2 * half,)
    exponent : int
        Bins are ``2.0 ** exponent`` wide.
    ends : float32 arrays, at most `tail` values each
        The least so far, ascending, and the greatest, descending.
    tail : int
        How many to keep of either.
    """
    x = x.reshape(-1)
    low, high = float(x.min()), float(x.max())
    bad = int(np.isnan(x).sum()), int(np.isinf(x).sum())
    if any(bad):
        return Seen(low, high, *bad, 0, exponent, *ends)
    half = counts.size // 2
    wider = max(exponent, exponent_for(max(-low, high), half))
    join(counts, wider - exponent)
    index = (np.abs(x).astype(np.float64) * 2.0**-wider).astype(np.int64)
    place = np.where(x < 0, half - 1 - index, half + index)
    counts += np.bincount(place, minlength=2 * half)
    least, most = -greatest(-ends[0], -x, tail), greatest(ends[1], x, tail)
    return Seen(low, high, 0, 0, int((x == 0).sum()), wider, least, most)

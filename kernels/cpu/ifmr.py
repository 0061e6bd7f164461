"""The squared errors of IFMR's candidates on data: all cores, a chunk of the data each.

Sums are taken in an order that does not depend on the number of threads: loops over values
add slices of a block element by element, as vector instructions do.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from kernels.cpu.blas import spread
from kernels.cpu.jit import jit

__all__ = ["distance", "pair_sum", "squared_errors"]

_CHUNK = 1 << 16
_BLOCK = 1 << 11
#: The float32 below one half.
_ALMOST_HALF = np.float32(0.49999997)


@jit
def distance(v, low, high, scale):
    """Return ``round_half_away(clip(v, low, high) / scale) * scale - v`` of a float32.

    ``trunc(q + almost half)`` rounds every float32 alike, in fewer instructions.
    """
    inner = v if v > low else low
    inner = inner if inner < high else high
    q = inner / scale
    return np.trunc(q + np.copysign(_ALMOST_HALF, q)) * scale - v


@jit
def _distances(x, low, high, scale, out):
    for i in range(x.size):
        out[i] = distance(x[i], low, high, scale)


@jit
def _square(v):
    wide = np.float64(v)
    return wide * wide


@jit
def _add_squares(d, sums):
    """Add the squares of a block to `sums`, an eighth of its size."""
    n = sums.size
    a, b, c, e = d[:n], d[n : 2 * n], d[2 * n : 3 * n], d[3 * n : 4 * n]
    f, g, h, k = d[4 * n : 5 * n], d[5 * n : 6 * n], d[6 * n : 7 * n], d[7 * n : 8 * n]
    for i in range(n):
        one = (_square(a[i]) + _square(b[i])) + (_square(c[i]) + _square(e[i]))
        two = (_square(f[i]) + _square(g[i])) + (_square(h[i]) + _square(k[i]))
        sums[i] += one + two


@jit
def _halve(values, n):
    """Add the second half of 2 * n values to the first."""
    first, second = values[:n], values[n : 2 * n]
    for i in range(n):
        first[i] += second[i]


@jit
def pair_sum(values):
    """Return the sum, in pairs; the values are lost."""
    n = values.size
    while n > 64 and n % 2 == 0:
        n //= 2
        _halve(values, n)
    total = 0.0
    for i in range(n):
        total += values[i]
    return total


@jit
def _errors(x, lows, highs, scales, losses):
    """Fill in the summed squared error of each candidate."""
    d, sums = np.empty(_BLOCK, np.float32), np.empty(_BLOCK // 8)
    for r in range(scales.size):
        for i in range(sums.size):
            sums[i] = 0
        for first in range(0, x.size, _BLOCK):
            block = x[first : first + _BLOCK]
            _distances(block, lows[r], highs[r], scales[r], d)
            for i in range(block.size, _BLOCK):
                d[i] = 0
            _add_squares(d, sums)
        losses[r] = pair_sum(sums)


@jit
def _not_zero(x, out):
    """Copy the values that are not zero; return how many."""
    n = np.uint64(0)
    for i in range(x.size):
        out[n] = x[i]
        n += np.uint64(x[i] != 0)
    return np.int64(n)


def _chunk_errors(
    x: np.ndarray, ranges: tuple[np.ndarray, ...], with_zero: bool, losses: np.ndarray
) -> None:
    """Fill in the summed squared error of each candidate on a chunk.

    Zeros, half of the data after a ReLU, have no error as long as all ranges hold zero.
    """
    if with_zero:
        values = np.empty(x.size, np.float32)
        x = values[: _not_zero(x, values)]
    _errors(x, *ranges, losses)


def squared_errors(
    x: np.ndarray, lows: np.ndarray, highs: np.ndarray, scales: np.ndarray
) -> np.ndarray:
    """See `kernels.reference.ifmr.squared_errors`; sums agree to rounding of float64."""
    losses = np.zeros((-(-x.size // _CHUNK), scales.size))
    with_zero = bool(lows.max() <= 0 <= highs.min())
    jobs = [
        partial(
            _chunk_errors, x[c * _CHUNK : (c + 1) * _CHUNK], (lows, highs, scales), with_zero, sums
        )
        for c, sums in enumerate(losses)
    ]
    spread(jobs)
    return losses.sum(axis=0)

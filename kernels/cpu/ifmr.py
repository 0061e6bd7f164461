"""The squared errors of IFMR's candidates on data: all cores, a chunk of the data each.

Sums are taken in an order that does not depend on the number of threads.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from kernels.cpu.cells import make_cells
from kernels.cpu.codegen.ifmr_loss import BLOCK, MOST, compiled
from kernels.cpu.codegen.native import call
from kernels.cpu.jit import jit, round_float32
from kernels.cpu.threads import spread

__all__ = ["distance", "pair_sum", "squared_errors"]

_CHUNK = 1 << 16
#: So many values for each lane, and so many candidates, pay for counting the values in cells.
_MANY, _CANDIDATES = 1 << 14, 8
#: Reciprocals of scales up to here are normal float32.
_LARGE = np.float32(2.0**100)


@jit
def distance(v, low, high, scale):
    """Return ``round_half_away(clip(v, low, high) / scale) * scale - v`` of a float32."""
    inner = v if v > low else low
    inner = inner if inner < high else high
    return round_float32(inner / scale) * scale - v


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
def _shares(lows, highs, scales):
    """Return the reciprocals of the scales; NaN where a product is too far from a quotient."""
    shares = np.float32(1) / scales
    for r in range(scales.size):
        too_large = max(np.abs(lows[r]), np.abs(highs[r])) > MOST * scales[r]
        if too_large or scales[r] > _LARGE:
            shares[r] = np.nan
    return shares


@jit
def _errors(code, x, lows, highs, scales, sums, losses):
    """Fill in the summed squared error of each candidate; `sums` is (R, lanes) zeros."""
    shares, blocks = _shares(lows, highs, scales), x.size // BLOCK
    if blocks:
        ranges = lows.ctypes.data, highs.ctypes.data, scales.ctypes.data, shares.ctypes.data
        call(code, (x.ctypes.data, blocks, *ranges, scales.size, sums.ctypes.data))
    for r in range(scales.size):
        losses[r] = pair_sum(sums[r])
        for v in x[blocks * BLOCK :]:
            losses[r] += np.float64(distance(v, lows[r], highs[r], scales[r])) ** 2


@jit
def _not_zero(x, out):
    """Copy the values that are not zero; return how many."""
    n = np.uint64(0)
    for i in range(x.size):
        out[n] = x[i]
        n += np.uint64(x[i] != 0)
    return np.int64(n)


def _errors_of(ranges: tuple[np.ndarray, ...], x: np.ndarray, losses: np.ndarray) -> None:
    """Fill in the summed squared error of each candidate on a few values."""
    code, lanes = compiled()
    _errors(code, x, *ranges, np.zeros((losses.size, lanes)), losses)


def _chunk_errors(
    x: np.ndarray, ranges: tuple[np.ndarray, ...], with_zero: bool, losses: np.ndarray
) -> None:
    """Fill in the summed squared error of each candidate on a chunk.

    Zeros, half of the data after a ReLU, have no error as long as all ranges hold zero.
    """
    if with_zero:
        values = np.empty(x.size, np.float32)
        x = values[: _not_zero(x, values)]
    _errors_of(ranges, x, losses)


def squared_errors(
    x: np.ndarray, lows: np.ndarray, highs: np.ndarray, scales: np.ndarray
) -> np.ndarray:
    """See `kernels.reference.ifmr.squared_errors`; sums agree to rounding of float64."""
    x, lows, highs, scales = map(np.ascontiguousarray, (x, lows, highs, scales))
    if x.size >= _MANY * compiled()[1] and scales.size >= _CANDIDATES:
        cells = make_cells(lows, highs, scales)
        rest = partial(_errors_of, (lows, highs, scales))
        losses = cells.losses(x, rest) if cells is not None else None
        if losses is not None:
            return losses
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

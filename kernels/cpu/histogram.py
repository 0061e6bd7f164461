"""Observing in one pass over memory, on all cores: see `kernels.cpu.bins`.

Every thread counts in a table of its own. Small arrays are counted by one compiled call, straight
into the counts.
"""

from __future__ import annotations

import math
import threading

import numba
import numpy as np

from kernels.cpu.bins import (
    bits_of,
    ends_of,
    exponent_of,
    increment,
    join,
    place_block,
    scan,
    scan_parts,
    settle,
    values_at,
)
from kernels.cpu.codegen.bin_index import TURNS, compiled
from kernels.cpu.extremes import NOTHING, RUNS, float_of, greatest_of
from kernels.cpu.jit import jit, parallel_entry
from kernels.cpu.lines import BLOCK, block, lines_of
from kernels.histogram import Seen

__all__ = ["count"]

#: Counters of a table are int32.
_MOST = 1 << 30
#: Fewer values are counted without a table.
_FEW = 1 << 17

_LOCAL = threading.local()


@jit
def _finish(x, starts, length, lows, highs, tables, exponents, counts, exponent, extremes):
    """Move what was found in all parts to the counts.

    Parameters
    ----------
    x, starts, length, lows, highs
        As for `scan`.
    tables : int32 array (at least parts, 2 * half + TURNS)
        Zeros afterwards.
    exponents : int64 array (parts,)
    counts : int64 array (2 * half,)
    exponent : int
        Of the counts.
    extremes : tuple of (float32 array, float32 array, int)
        The smallest and the largest values so far, and how many of each to keep.

    Returns
    -------
    tuple of (low, high, zeros, exponent, smallest, largest)
        If an end is not finite nothing was counted.
    """
    low, high = ends_of(lows, highs)
    if not (np.isfinite(low) and np.isfinite(high)):
        tables[: exponents.size] = 0
        return low, high, 0, exponent, extremes[0], extremes[1]
    wider = max(exponent, exponents.max())
    join(counts, counts.size // 2, wider - exponent)
    zeros = settle(tables, exponents, counts, wider, low, high)
    smallest, largest = _outermost(x, starts, length, lows, highs, low, high, extremes)
    return low, high, zeros, wider, smallest, largest


@jit
def _outermost(x, starts, length, lows, highs, low, high, extremes):
    """Return the smallest and the largest values so far, these among them."""
    smallest, largest, tail = extremes
    if smallest.size < tail or low < smallest[-1]:
        keys, sign = ~lows, np.float32(-1)
        smallest = -greatest_of(-smallest, NOTHING, x, starts, length, keys, sign, tail)
    if largest.size < tail or high > largest[-1]:
        largest = greatest_of(largest, NOTHING, x, starts, length, highs, np.float32(1), tail)
    return smallest, largest


@jit
def _count_few(address, data, starts, length, blocks, counts, exponent, extremes):
    """Count without a table, as adding one takes longer than to look at few values twice."""
    x, half = values_at(data, starts[-1] + length), counts.size // 2
    lows, highs = np.empty(blocks * RUNS, np.int32), np.empty(blocks * RUNS, np.int32)
    place, place_count = np.empty(BLOCK + TURNS, np.int32), np.empty(1, np.int64)
    lowest, highest = np.int32(2147483647), np.int32(-2147483648)
    for b in range(blocks):
        first, last = block(starts, length, b)
        ends = place_block(
            address, x[first:last], exponent, half, place, lows, highs, b, place_count
        )
        lowest, highest = min(lowest, ends[0]), max(highest, ends[1])
    low, high = np.float64(float_of(lowest)), np.float64(float_of(highest))
    if not (np.isfinite(low) and np.isfinite(high)):
        return low, high, 0, exponent, extremes[0], extremes[1]
    wider = max(exponent, exponent_of(lowest, highest, bits_of(half)))
    join(counts, half, wider - exponent)
    zeros = starts.size * length
    for b in range(blocks):
        first, last = block(starts, length, b)
        if blocks > 1 or wider > exponent:
            place_block(address, x[first:last], wider, half, place, lows, highs, b, place_count)
        increment(counts, place[: place_count[0]])
        zeros -= place_count[0]
    counts[half] += zeros
    smallest, largest = _outermost(x, starts, length, lows, highs, low, high, extremes)
    return low, high, zeros, wider, smallest, largest


@jit
def _count_alone(address, data, starts, length, blocks, tables, counts, exponent, extremes):
    """Count and finish on this thread."""
    x = values_at(data, starts[-1] + length)
    lows, highs = np.empty(blocks * RUNS, np.int32), np.empty(blocks * RUNS, np.int32)
    exponents = np.empty(1, np.int64)
    lines = x, starts, length
    exponents[0] = scan(address, *lines, 0, blocks, exponent, tables[0], True, lows, highs)
    return _finish(*lines, lows, highs, tables, exponents, counts, exponent, extremes)


@jit
def _count_parts(address, data, starts, length, parts, tables, counts, exponent, extremes):
    """Count on several threads, and finish."""
    x, runs = values_at(data, starts[-1] + length), parts[1][-1] * RUNS
    lows, highs = np.empty(runs, np.int32), np.empty(runs, np.int32)
    exponents = np.full(parts[0].size, exponent)
    lines = x, starts, length
    scan_parts(address, *lines, parts, exponents, tables, True, lows, highs)
    return _finish(*lines, lows, highs, tables, exponents, counts, exponent, extremes)


def _tables(parts: int, size: int) -> np.ndarray:
    """Take at least so many tables of zeros from this thread; `count` returns them zeroed."""
    tables = getattr(_LOCAL, "tables", None)
    _LOCAL.tables = None  # after an exception partly filled tables are not reused
    if tables is None or tables.shape[0] < parts or tables.shape[1] != size:
        return np.zeros((parts, size), np.int32)
    return tables


def _parts(size: int) -> int:
    """Return how many threads pay off: each has its table to add in the end."""
    return max(min(numba.get_num_threads(), math.isqrt(size >> 15)), -(-size // _MOST), 1)


def count(
    x: np.ndarray, counts: np.ndarray, exponent: int, ends: tuple[np.ndarray, np.ndarray], tail: int
) -> Seen:
    """See `kernels.reference.histogram.count`; lines that lie together are not copied."""
    data = lines_of(x)
    parts, blocks = _parts(x.size), data.starts.size * -(-data.length // BLOCK)
    address, without_zeros = compiled()
    lines = address, data.address, data.starts, data.length
    into = counts, exponent, (*ends, tail)
    if x.size < _FEW and without_zeros:
        found = _count_few(*lines, blocks, *into)
    else:
        tables = _tables(parts, counts.size + TURNS)
        if parts == 1:
            found = _count_alone(*lines, blocks, tables, *into)
        else:
            cuts = np.arange(parts + 1) * blocks // parts
            with parallel_entry():
                found = _count_parts(*lines, (cuts[:-1], cuts[1:]), tables, *into)
        _LOCAL.tables = tables
    low, high, zeros, wider, smallest, largest = found
    if math.isfinite(low) and math.isfinite(high):
        return Seen(low, high, 0, 0, zeros, wider, smallest, largest)
    bad = int(np.isnan(x).sum()), int(np.isinf(x).sum())
    return Seen(low, high, *bad, 0, exponent, *ends)

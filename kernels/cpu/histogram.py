"""Observing in one pass over memory, on all cores.

The data is read a block at a time, small enough for the first cache: its extremes and the
places of its values by vector instructions, then one increment after the other. Every thread
counts in a table of its own. Where a block does not fit in the bins, these are joined first:
joining bins gives the same counts as if they had been as wide from the start. Small arrays are
counted by one compiled call: a calibration counts thousands of them.
"""

from __future__ import annotations

import math
import threading

import numba
import numpy as np

from kernels.cpu.codegen.bin_index import RUN, TURNS, compiled
from kernels.cpu.codegen.native import bytes_at, call
from kernels.cpu.extremes import NOTHING, RUNS, float_of, greatest_of
from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange
from kernels.cpu.lines import BLOCK, block, lines_of
from kernels.histogram import LEAST_EXPONENT, Seen

__all__ = ["count", "ends_of", "join", "scan", "scan_parts", "settle", "values_at"]

#: Counters of a table are int32.
_MOST = 1 << 30
#: Fewer values are counted without a table.
_FEW = 1 << 17
_INFINITY = 0x7F800000
_LEAST = LEAST_EXPONENT

_LOCAL = threading.local()


@jit
def _increment(table, place):
    """Count the places (n,), int32."""
    for i in range(place.size):
        table[np.uint32(place[i])] += 1


@jit
def join(counts, half, steps):
    """Join bins in pairs, `steps` times, outwards from zero and in place."""
    group = 1
    while steps > 0 and group < half:
        group, steps = 2 * group, steps - 1
    left = half // group
    if group == 1:
        return
    for i in range(left):
        above, below = counts[half] * 0, counts[half] * 0
        for k in range(i * group, (i + 1) * group):
            above += counts[half + k]
            below += counts[half - 1 - k]
        counts[half + i], counts[half - 1 - i] = above, below
    counts[: half - left] = 0
    counts[half + left : 2 * half] = 0


@jit
def _place(address, x, exponent, half, place, lows, highs, b, place_count):
    """Find where the values of block b are counted; return their extreme keys."""
    runs = slice(b * RUNS, (b + 1) * RUNS)
    lows, highs = lows[runs], highs[runs]
    # 2.0**-exponent by its bits; 2.0**-127 is below the powers that are an exponent alone
    factor = (127 - exponent) << 23 if exponent < 127 else 1 << 22
    ends = lows.ctypes.data, highs.ctypes.data, place_count.ctypes.data
    call(address, (x.ctypes.data, x.size, factor, half, place.ctypes.data, *ends))
    used = (x.size + RUN - 1) // RUN
    low, high = lows[0], highs[0]
    for r in range(RUNS):
        if r >= used:  # no values, no extremes
            lows[r], highs[r] = np.int32(2147483647), np.int32(-2147483648)
        low, high = min(low, lows[r]), max(high, highs[r])
    return low, high


@jit
def _bits(half):
    """Return the logarithm of a power of two."""
    size = 0
    while half >> size > 1:
        size += 1
    return size


@jit
def _exponent(low, high, size):
    """Return the least exponent of ``2 ** size`` bins a side that hold values by extreme keys."""
    # the exponent of a float is in its bits above the 23rd
    return max(_LEAST, (max(np.int64(high), -1 - np.int64(low)) >> 23) - 126 - size)


@jit
def scan(address, x, starts, length, begin, end, exponent, table, empty, lows, highs):
    """Count blocks begin..end; where one does not fit in the bins, widen those of the table.

    Parameters
    ----------
    address : int
        Of ``place``, see `kernels.cpu.codegen.bin_index`.
    x : float32 array (n,)
    starts, length : int64 array (lines,), int
        Where lines begin in `x`, and how long they are.
    begin, end : int
    exponent : int
        Bins are ``2.0 ** exponent`` wide.
    table : int32 array (2 * half + TURNS,)
    empty : bool
        Whether nothing has been counted in it.
    lows, highs : int32 array (runs,)
        Filled with the extreme keys of all runs.

    Returns
    -------
    int
        The exponent of the table now. After a value that is not finite nothing is counted.
    """
    half = (table.size - TURNS) // 2
    size = _bits(half)
    place, place_count = np.empty(BLOCK + TURNS, np.int32), np.empty(1, np.int64)
    finite = True
    for b in range(begin, end):
        first, last = block(starts, length, b)
        low, high = _place(
            address, x[first:last], exponent, half, place, lows, highs, b, place_count
        )
        finite = finite and high < _INFINITY and low >= -_INFINITY
        if not finite:
            continue
        # the key of the first magnitude beyond the bins: a power of two, or infinity
        limit = min((exponent + size + 127) << 23, _INFINITY)
        if high >= limit or low < -limit:
            wider = _exponent(low, high, size)
            if not empty:
                join(table, half, wider - exponent)
            exponent = wider
            _place(address, x[first:last], exponent, half, place, lows, highs, b, place_count)
        empty = False
        table[2 * half] += last - first - place_count[0]
        if low == high and place_count[0] > 0:
            table[place[0]] += place_count[0]
            continue
        _increment(table, place[: place_count[0]])
    return exponent


@parallel_jit
def scan_parts(address, x, starts, length, parts, exponents, tables, empty, lows, highs):
    """Scan several parts, from where to where, at once; `exponents` are those of their tables."""
    begins, ends = parts
    for part in prange(begins.size):
        p = np.int64(part)
        part_of = begins[p], ends[p], exponents[p], tables[p], empty
        exponents[p] = scan(address, x, starts, length, *part_of, lows, highs)


@jit
def ends_of(lows, highs):
    """Return the extremes of the data by the extreme keys of its runs."""
    low, high = lows[0], highs[0]
    for b in range(lows.size):
        low, high = min(low, lows[b]), max(high, highs[b])
    return np.float64(float_of(low)), np.float64(float_of(high))


@jit
def _add(table, counts):
    """Add 32-bit counters to int64 ones, and begin anew."""
    for i in range(table.size):
        counts[i] += table[i]
        table[i] = 0


@jit
def settle(tables, exponents, counts, exponent, low, high):
    """Move what the tables hold to the counts, whose bins are as wide as the widest of theirs.

    Returns
    -------
    int
        How many zeros there were.
    """
    half, zeros = counts.size // 2, 0
    # no bin further out than the extremes holds anything
    width = 2.0**exponent
    below = int(min(max(-low, 0.0) / width, half - 1.0))
    above = int(min(max(high, 0.0) / width, half - 1.0))
    first, last = half - 1 - below, half + 1 + above
    for t in range(exponents.size):
        join(tables[t], half, exponent - exponents[t])
        _add(tables[t, first:last], counts[first:last])
        for turn in range(2 * half, tables.shape[1]):
            zeros += tables[t, turn]
            tables[t, turn] = 0
    counts[half] += zeros
    return zeros


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
def values_at(data, size):
    """Return the float32 values from an address on."""
    return bytes_at(data, 4 * size).view(np.float32)


@jit
def _count_few(address, data, starts, length, blocks, counts, exponent, extremes):
    """Count without a table, as adding one takes longer than to look at few values twice."""
    x, half = values_at(data, starts[-1] + length), counts.size // 2
    lows, highs = np.empty(blocks * RUNS, np.int32), np.empty(blocks * RUNS, np.int32)
    place, place_count = np.empty(BLOCK + TURNS, np.int32), np.empty(1, np.int64)
    lowest, highest = np.int32(2147483647), np.int32(-2147483648)
    for b in range(blocks):
        first, last = block(starts, length, b)
        ends = _place(address, x[first:last], exponent, half, place, lows, highs, b, place_count)
        lowest, highest = min(lowest, ends[0]), max(highest, ends[1])
    low, high = np.float64(float_of(lowest)), np.float64(float_of(highest))
    if not (np.isfinite(low) and np.isfinite(high)):
        return low, high, 0, exponent, extremes[0], extremes[1]
    wider = max(exponent, _exponent(lowest, highest, _bits(half)))
    join(counts, half, wider - exponent)
    zeros = starts.size * length
    for b in range(blocks):
        first, last = block(starts, length, b)
        if blocks > 1 or wider > exponent:
            _place(address, x[first:last], wider, half, place, lows, highs, b, place_count)
        _increment(counts, place[: place_count[0]])
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

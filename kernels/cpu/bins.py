"""Counting lines of values in tables, and joining the bins of these: what histograms share.

The data is read a block at a time, small enough for the first cache: its extremes and the
places of its values by vector instructions, then one increment after the other. Where a block does
not fit in the bins, these are joined first: joining bins gives the same counts as if they had been
as wide from the start.
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.codegen.bin_index import RUN, TURNS
from kernels.cpu.codegen.native import bytes_at, call
from kernels.cpu.extremes import RUNS, float_of
from kernels.cpu.jit import jit, parallel_jit, prange
from kernels.cpu.lines import BLOCK, block
from kernels.histogram import LEAST_EXPONENT

__all__ = [
    "INFINITY",
    "bits_of",
    "ends_of",
    "exponent_of",
    "increment",
    "join",
    "place_block",
    "scan",
    "scan_parts",
    "settle",
    "values_at",
]

#: The key of infinity.
INFINITY = 0x7F800000
_LEAST = LEAST_EXPONENT


@jit
def increment(table, place):
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
def place_block(address, x, exponent, half, place, lows, highs, b, place_count):
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
def bits_of(half):
    """Return the logarithm of a power of two."""
    size = 0
    while half >> size > 1:
        size += 1
    return size


@jit
def exponent_of(low, high, size):
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
    size = bits_of(half)
    place, place_count = np.empty(BLOCK + TURNS, np.int32), np.empty(1, np.int64)
    finite = True
    for b in range(begin, end):
        first, last = block(starts, length, b)
        low, high = place_block(
            address, x[first:last], exponent, half, place, lows, highs, b, place_count
        )
        finite = finite and high < INFINITY and low >= -INFINITY
        if not finite:
            continue
        # the key of the first magnitude beyond the bins: a power of two, or infinity
        limit = min((exponent + size + 127) << 23, INFINITY)
        if high >= limit or low < -limit:
            wider = exponent_of(low, high, size)
            if not empty:
                join(table, half, wider - exponent)
            exponent = wider
            place_block(address, x[first:last], exponent, half, place, lows, highs, b, place_count)
        empty = False
        table[2 * half] += last - first - place_count[0]
        if low == high and place_count[0] > 0:
            table[place[0]] += place_count[0]
            continue
        increment(table, place[: place_count[0]])
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
def values_at(data, size):
    """Return the float32 values from an address on."""
    return bytes_at(data, 4 * size).view(np.float32)

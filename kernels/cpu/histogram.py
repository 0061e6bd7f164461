"""Observing in one pass over memory, on all cores.

The data is read a block at a time, small enough for the first cache: its extremes and the
places of its values by vector instructions, then one increment after the other. Every thread
counts in tables of its own: one of small counters, which stays in the first cache, and one of
large ones. Where a block does not fit in the bins, these are joined first: joining bins gives
the same counts as if they had been as wide from the start.
"""

from __future__ import annotations

import math
import threading

import numba
import numpy as np

from kernels.cpu.codegen.bin_index import RUN, TURNS, compiled
from kernels.cpu.codegen.native import call
from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange
from kernels.cpu.lines import BLOCK, Lines, block, lines_of
from kernels.histogram import LEAST_EXPONENT, Seen, join

__all__ = ["count"]

#: Runs of a block; their extremes are noted, so that most are not read again for the tails.
_RUNS = BLOCK // RUN
#: Values in a table of uint16 beyond which another block could overflow a counter.
_FULL = (1 << 16) - 1 - BLOCK
#: Up to so many runs are searched for extremes without sorting them first.
_FEW_RUNS = 32
#: Counters of a table are int32.
_MOST = 1 << 30
_INFINITY = 0x7F800000
_LEAST = LEAST_EXPONENT

#: Of each thread: tables of uint16 and of int32, see `_scan`.
_Tables = tuple[np.ndarray, np.ndarray]

_LOCAL = threading.local()


@jit
def _increment(recent, place):
    """Count the places (n,), int32, in 16-bit counters."""
    for i in range(place.size):
        recent[np.uint32(place[i])] += np.uint16(1)


@jit
def _join_table(table, steps):
    """Join the bins of a table in pairs, `steps` times, outwards from zero and in place."""
    half = (table.size - TURNS) // 2
    group = 1
    while steps > 0 and group < half:
        group, steps = 2 * group, steps - 1
    left = half // group
    if group == 1:
        return
    for i in range(left):
        above, below = np.int32(0), np.int32(0)
        for k in range(i * group, (i + 1) * group):
            above += table[half + k]
            below += table[half - 1 - k]
        table[half + i], table[half - 1 - i] = above, below
    table[: half - left] = 0
    table[half + left : 2 * half] = 0


@jit
def _place(address, x, exponent, half, place, lows, highs, b, place_count):
    """Find where the values of block b are counted; return their extreme keys."""
    runs = slice(b * _RUNS, (b + 1) * _RUNS)
    lows, highs = lows[runs], highs[runs]
    # 2.0**-exponent by its bits; 2.0**-127 is below the powers that are an exponent alone
    factor = (127 - exponent) << 23 if exponent < 127 else 1 << 22
    ends = lows.ctypes.data, highs.ctypes.data, place_count.ctypes.data
    call(address, (x.ctypes.data, x.size, factor, half, place.ctypes.data, *ends))
    used = (x.size + RUN - 1) // RUN
    low, high = lows[0], highs[0]
    for r in range(_RUNS):
        if r >= used:  # no values, no extremes
            lows[r], highs[r] = np.int32(2147483647), np.int32(-2147483648)
        low, high = min(low, lows[r]), max(high, highs[r])
    return low, high


@jit
def _flush(recent, table, exponent, low, high):
    """Move the recent counts to the table; `low` and `high` are the extreme keys they have."""
    half = (table.size - TURNS) // 2
    below, above = _outermost(low, exponent, half), _outermost(high, exponent, half)
    for first, last in ((half - 1 - below, half + 1 + above), (2 * half, table.size)):
        _add(recent[first:last], table[first:last])


@jit
def _outermost(key, exponent, half):
    """Return how far from zero a key's magnitude is counted, at most."""
    bits = np.int64(max(key, -1 - key))
    # the magnitude rounded up to a power of two, in bins
    return min(half - 1, 1 << max(0, min(62, (bits >> 23) - 126 - exponent)))


@jit
def _scan(address, x, starts, length, begin, end, exponent, recent, table, lows, highs):
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
    recent, table : uint16 and int32 array (2 * half + TURNS,)
        Of zeros. What the first has counted is moved to the second before it overflows.
    lows, highs : int32 array (runs,)
        Filled with the extreme keys of all runs.

    Returns
    -------
    int
        The exponent of the table now. After a value that is not finite nothing is counted.
    """
    half, size = (table.size - TURNS) // 2, 0
    while half >> size > 1:
        size += 1
    place, place_count = np.empty(BLOCK + TURNS, np.int32), np.empty(1, np.int64)
    finite, recent_count, lowest, highest = True, 0, np.int32(0), np.int32(0)
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
            # the exponent of a float is in its bits above the 23rd
            wider = max(_LEAST, (max(high, -1 - low) >> 23) - 126 - size)
            if b > begin:  # else it is empty
                _flush(recent, table, exponent, lowest, highest)
                _join_table(table, wider - exponent)
            exponent, recent_count = wider, 0
            _place(address, x[first:last], exponent, half, place, lows, highs, b, place_count)
        lowest, highest = min(lowest, low), max(highest, high)
        table[2 * half] += last - first - place_count[0]
        if low == high and place_count[0] > 0:
            table[place[0]] += place_count[0]
            continue
        _increment(recent, place[: place_count[0]])
        recent_count += place_count[0]
        if recent_count > _FULL:
            _flush(recent, table, exponent, lowest, highest)
            recent_count = 0
    if finite:
        _flush(recent, table, exponent, lowest, highest)
    return exponent


@parallel_jit
def _scan_parts(address, x, starts, length, begins, ends, exponents, tables, lows, highs):
    """Scan several parts at once; `exponents` becomes those of their tables."""
    recent, table = tables
    for part in prange(begins.size):
        p = np.int64(part)
        part_of = begins[p], ends[p], exponents[p], recent[p], table[p]
        exponents[p] = _scan(address, x, starts, length, *part_of, lows, highs)


@jit
def _ends(lows, highs):
    """Return the extremes of the data by the extreme keys of its runs."""
    low, high = lows[0], highs[0]
    for b in range(lows.size):
        low, high = min(low, lows[b]), max(high, highs[b])
    keys = np.empty(2, np.int32)
    keys[0] = low if low >= 0 else low ^ np.int32(0x7FFFFFFF)
    keys[1] = high if high >= 0 else high ^ np.int32(0x7FFFFFFF)
    ends = keys.view(np.float32)
    return np.float64(ends[0]), np.float64(ends[1])


@jit
def _add(table, counts):
    """Add 32-bit counters to int64 ones, and begin anew."""
    for i in range(table.size):
        counts[i] += table[i]
        table[i] = 0


@jit
def _settle(tables, exponents, counts, exponent, low, high):
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
    for t in range(tables.shape[0]):
        _join_table(tables[t], exponent - exponents[t])
        _add(tables[t, first:last], counts[first:last])
        for turn in range(2 * half, tables.shape[1]):
            zeros += tables[t, turn]
            tables[t, turn] = 0
    counts[half] += zeros
    return zeros


def _tables(parts: int, size: int) -> _Tables:
    """Take at least so many tables of zeros from this thread; `count` returns them zeroed."""
    tables = getattr(_LOCAL, "tables", None)
    _LOCAL.tables = None  # after an exception partly filled tables are not reused
    if tables is None or tables[0].shape[0] < parts or tables[0].shape[1] != size:
        tables = np.zeros((parts, size), np.uint16), np.zeros((parts, size), np.int32)
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
    lows, highs = np.empty((2, blocks * _RUNS), np.int32)
    begins = [blocks * part // parts for part in range(parts)]
    until = [*begins[1:], blocks]
    tables = _tables(parts, counts.size + TURNS)
    exponents = _scan_all(data, begins, until, exponent, tables, lows, highs)
    low, high = _ends(lows, highs)
    if not (math.isfinite(low) and math.isfinite(high)):
        for table in tables:
            table[:] = 0
        _LOCAL.tables = tables
        bad = int(np.isnan(x).sum()), int(np.isinf(x).sum())
        return Seen(low, high, *bad, 0, exponent, *ends)
    wider = max(exponent, int(exponents.max()))
    join(counts, wider - exponent)
    zeros = _settle(tables[1][:parts], exponents, counts, wider, low, high)
    _LOCAL.tables = tables
    smallest, largest = ends
    if smallest.size < tail or low < smallest[-1]:
        smallest = -_top(-smallest, data, ~lows, -1, tail)
    if largest.size < tail or high > largest[-1]:
        largest = _top(largest, data, highs, 1, tail)
    return Seen(low, high, 0, 0, zeros, wider, smallest, largest)


def _scan_all(
    data: Lines,
    begins: list[int],
    until: list[int],
    exponent: int,
    tables: _Tables,
    lows: np.ndarray,
    highs: np.ndarray,
) -> np.ndarray:
    """Scan the parts of the data; return the exponents of their tables."""
    lines = compiled(), data.memory, data.starts, data.length
    exponents = np.full(len(begins), exponent)
    if len(begins) == 1:
        first = tables[0][0], tables[1][0]
        exponents[0] = _scan(*lines, begins[0], until[0], exponent, *first, lows, highs)
        return exponents
    parts = np.array(begins), np.array(until), exponents
    with parallel_entry():
        _scan_parts(*lines, *parts, tables, lows, highs)
    return exponents


@jit
def _key(value):
    """Return the key of a float32, see `kernels.cpu.codegen.bin_index`."""
    buffer = np.empty(1, np.float32)
    buffer[0] = value
    bits = buffer.view(np.int32)[0]
    return bits if bits >= 0 else np.int32(bits ^ np.int32(0x7FFFFFFF))


@jit
def _above(x, sign, least, out):
    """Copy the values of ``sign * x`` above the least; return how many."""
    n = np.uint64(0)
    for i in range(x.size):
        value = sign * x[i]
        out[n] = value
        n += np.uint64(value > least)
    return np.int64(n)


@jit
def _insert(x, starts, length, runs, tops, sign, best, filled):
    """Insert the values of ``sign * x`` in some runs that are among the greatest so far.

    Parameters
    ----------
    x, starts, length
        As for `_scan`.
    runs : int64 array
        Which runs to look at.
    tops : int32 array
        The key of the greatest value of every run.
    sign : float32
    best : float32 array (tail,)
        Descending as far as it is filled; changed in place.
    filled : int

    Returns
    -------
    int
        How much of `best` is filled now.
    """
    tail, candidates = best.size, np.empty(RUN, np.float32)
    for run in runs:
        least = best[tail - 1] if filled == tail else np.float32(-np.inf)
        if tops[run] <= _key(least):
            continue
        begin, end = block(starts, length, run // _RUNS)
        begin += run % _RUNS * RUN
        candidate_count = _above(x[begin : min(begin + RUN, end)], sign, least, candidates)
        for value in candidates[:candidate_count]:
            if filled == tail and value <= best[tail - 1]:
                continue
            filled = min(filled + 1, tail)
            at = filled - 1
            while at > 0 and best[at - 1] < value:
                best[at] = best[at - 1]
                at -= 1
            best[at] = value + np.float32(0)
    return filled


def _top(previous: np.ndarray, data: Lines, tops: np.ndarray, sign: int, tail: int) -> np.ndarray:
    """Return the `tail` greatest of `previous` and ``sign * x``, descending.

    Of many runs those with the greatest values come first: soon the least of the best lies
    above those of most others, which need not be read.
    """
    threshold = previous[-1] if previous.size == tail else np.float32(-math.inf)
    runs = np.flatnonzero(tops > _key(threshold))
    if runs.size > tail:  # `tail` maxima are at least all values of other runs
        runs = runs[np.argpartition(tops[runs], runs.size - tail)[runs.size - tail :]]
    if runs.size > _FEW_RUNS:
        runs = runs[np.argsort(tops[runs])[::-1]]
    best = np.empty(tail, np.float32)
    best[: previous.size] = previous
    filled = _insert(
        data.memory, data.starts, data.length, runs, tops, np.float32(sign), best, previous.size
    )
    return best[:filled]

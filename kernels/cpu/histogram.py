"""Observing in one pass over memory, on all cores.

The data is read a block at a time, small enough for the first cache: its extremes and the
places of its values by vector instructions, then one increment after the other. Every thread
counts in a table of its own. Where a block does not fit in the bins of its table, these are
joined first: joining bins gives the same counts as if they had been as wide from the start.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np
from numpy.lib.stride_tricks import as_strided

from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange
from kernels.histogram import LEAST_EXPONENT, Seen, join

__all__ = ["count"]

#: Values that are counted together; long, so that memory is read ahead.
_BLOCK = 1 << 12
#: Values whose extremes are noted, so that most are not read again for the tails.
_RUN = 1 << 9
_RUNS = _BLOCK // _RUN
_TURNS = 16
#: So many runs are searched for extremes in any order.
_FEW_RUNS = 32
#: Counters of a table are int32.
_MOST = 1 << 30
_INFINITY = 0x7F800000
_LEAST = LEAST_EXPONENT

_FIRST = np.zeros(1, np.int64)
_LOCAL = threading.local()


@jit
def _extreme_keys(bits):
    """Return the least and greatest key of float32 bits.

    Keys are integers in the order of the floats; the key of -x is -1 minus that of x. They
    have no NaN, so the comparison is a vector instruction; a NaN's key lies beyond infinity's.
    """
    low, high = np.int32(2147483647), np.int32(-2147483648)
    for i in range(bits.size):
        b = bits[i]
        key = b if b >= 0 else np.int32(b ^ np.int32(0x7FFFFFFF))
        low, high = np.int32(min(low, key)), np.int32(max(high, key))
    return low, high


@jit
def _extremes(bits, lows, highs):
    """Note the extreme keys of every run; return those of all."""
    low, high = np.int32(2147483647), np.int32(-2147483648)
    for r in range(lows.size):
        lows[r], highs[r] = _extreme_keys(bits[r * _RUN : (r + 1) * _RUN])
        low, high = min(low, lows[r]), max(high, highs[r])
    return low, high


@jit
def _places(x, factor, half, turns, place):
    """Fill in where each value is counted: a float32 product truncates to the right bin.

    Zeros, which may be half of the data, take turns in places behind the bins: one counter
    incremented again and again would have to wait for itself.
    """
    for i in range(x.size):
        v = x[i]
        signed = np.int32(np.int32(half + np.int32(v * factor)) - np.int32(v < 0))
        place[i] = turns[i] if v == 0 else signed


@jit
def _increment(table, place):
    for i in range(place.size):
        table[np.uint32(place[i])] += np.int32(1)


@jit
def _block(starts, length, b):
    """Return where a block begins and ends; none reaches into another line."""
    per = (length + _BLOCK - 1) // _BLOCK
    start, part = starts[b // per], b % per
    return start + part * _BLOCK, start + min((part + 1) * _BLOCK, length)


@jit
def _join_table(table, steps):
    """Join the bins of a table in pairs, `steps` times, outwards from zero and in place."""
    half = (table.size - _TURNS) // 2
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
def _scan(x, bits, starts, length, begin, end, exponent, table, lows, highs):
    """Count blocks begin..end; where one does not fit in the bins, widen those of the table.

    Parameters
    ----------
    x, bits : float32 array (n,), and the same as int32
    starts, length : int64 array (lines,), int
        Where lines begin in `x`, and how long they are.
    begin, end : int
    exponent : int
        Bins are ``2.0 ** exponent`` wide.
    table : int32 array (2 * half + _TURNS,)
    lows, highs : int32 array (runs,)
        Filled with the extreme keys of all runs.

    Returns
    -------
    int
        The exponent of the table now. After a value that is not finite nothing is counted.
    """
    half, size = np.int32((table.size - _TURNS) // 2), 0
    while half >> size > 1:
        size += 1
    # the key of the first magnitude beyond the bins: a power of two, or infinity
    limit = min((exponent + size + 127) << 23, _INFINITY)
    factor, finite = np.float32(2.0**-exponent), True
    place, turns = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.int32)
    for i in range(_BLOCK):
        turns[i] = 2 * half + i % _TURNS
    for b in range(begin, end):
        first, last = _block(starts, length, b)
        runs = slice(b * _RUNS, (b + 1) * _RUNS)
        low, high = _extremes(bits[first:last], lows[runs], highs[runs])
        finite = finite and high < _INFINITY and low >= -_INFINITY
        if not finite:
            continue
        if high >= limit or low < -limit:
            # the exponent of a float is in its bits above the 23rd
            wider = max(_LEAST, (max(high, -1 - low) >> 23) - 126 - size)
            if b > begin:  # else it is empty
                _join_table(table, wider - exponent)
            exponent = wider
            limit = min((exponent + size + 127) << 23, _INFINITY)
            factor = np.float32(2.0**-exponent)
        if low == high:
            _places(x[first : first + 1], factor, half, turns, place)
            table[place[0]] += np.int32(last - first)
        else:
            _places(x[first:last], factor, half, turns, place)
            _increment(table, place[: last - first])
    return exponent


@parallel_jit
def _scan_parts(x, bits, starts, length, begins, ends, exponents, tables, lows, highs):
    """Scan several parts at once; `exponents` becomes those of their tables."""
    for part in prange(begins.size):
        p = np.int64(part)
        exponents[p] = _scan(
            x, bits, starts, length, begins[p], ends[p], exponents[p], tables[p], lows, highs
        )


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


def _tables(parts: int, size: int) -> np.ndarray:
    """Return so many tables of zeros, or more, to be put back when they are zero again."""
    kept = getattr(_LOCAL, "tables", None)
    _LOCAL.tables = None  # whoever is interrupted leaves no half-filled table behind
    if kept is None or kept.shape[0] < parts or kept.shape[1] != size:
        kept = np.zeros((parts, size), np.int32)
    return kept


def _parts(size: int) -> int:
    """Return how many threads pay off: each has its table to add in the end."""
    return max(min(numba.get_num_threads(), math.isqrt(size >> 15)), -(-size // _MOST), 1)


def count(
    x: np.ndarray, counts: np.ndarray, exponent: int, ends: tuple[np.ndarray, np.ndarray], tail: int
) -> Seen:
    """See `kernels.reference.histogram.count`; lines that lie together are not copied."""
    data = _lines(x)
    parts, blocks = _parts(x.size), data.starts.size * -(-data.length // _BLOCK)
    lows, highs = np.empty((2, blocks * _RUNS), np.int32)
    begins = [blocks * part // parts for part in range(parts)]
    until = [*begins[1:], blocks]
    kept = _tables(parts, counts.size + _TURNS)
    tables = kept[:parts]
    exponents = _scan_all(data, begins, until, exponent, tables, lows, highs)
    low, high = _ends(lows, highs)
    if not (math.isfinite(low) and math.isfinite(high)):
        tables[:] = 0
        _LOCAL.tables = kept
        bad = int(np.isnan(x).sum()), int(np.isinf(x).sum())
        return Seen(low, high, *bad, 0, exponent, *ends)
    wider = max(exponent, int(exponents.max()))
    join(counts, wider - exponent)
    zeros = _settle(tables, exponents, counts, wider, low, high)
    _LOCAL.tables = kept
    smallest, largest = ends
    if smallest.size < tail or low < smallest[-1]:
        smallest = -_top(-smallest, data, ~lows, -1, tail)
    if largest.size < tail or high > largest[-1]:
        largest = _top(largest, data, highs, 1, tail)
    return Seen(low, high, 0, 0, zeros, wider, smallest, largest)


@dataclass(frozen=True)
class _Lines:
    """Data as lines of one length in memory."""

    memory: np.ndarray
    starts: np.ndarray
    length: int


@lru_cache(maxsize=256)
def _starts(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int
) -> tuple[np.ndarray, int] | None:
    """Return where the lines of an array begin, in values, and their length; None if short."""
    axis, length = len(shape), 1
    while axis and strides[axis - 1] == itemsize * length:
        axis -= 1
        length *= shape[axis]
    whole = all(step >= 0 and step % itemsize == 0 for step in strides[:axis])
    if not axis or length < _RUN or not whole:
        return None
    starts = np.zeros(1, np.int64)
    for size, step in zip(shape[:axis], strides[:axis], strict=True):
        starts = (starts[:, None] + np.arange(size) * (step // itemsize)).reshape(-1)
    return starts, length


def _lines(x: np.ndarray) -> _Lines:
    """Return an array as lines; it is copied if they were short."""
    found = None if x.flags.c_contiguous else _starts(x.shape, x.strides, x.itemsize)
    if found is None:
        flat = x.reshape(-1)
        return _Lines(flat, _FIRST, flat.size)
    starts, length = found
    memory = as_strided(x, (int(starts[-1]) + length,), (x.itemsize,))
    return _Lines(memory, starts, length)


def _scan_all(
    data: _Lines,
    begins: list[int],
    until: list[int],
    exponent: int,
    tables: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
) -> np.ndarray:
    """Scan the parts of the data; return the exponents of their tables."""
    x = data.memory
    lines = x, x.view(np.int32), data.starts, data.length
    exponents = np.full(len(begins), exponent)
    if len(begins) == 1:
        exponents[0] = _scan(*lines, begins[0], until[0], exponent, tables[0], lows, highs)
        return exponents
    parts = np.array(begins), np.array(until), exponents
    with parallel_entry():
        _scan_parts(*lines, *parts, tables, lows, highs)
    return exponents


@jit
def _key(value):
    """Return the key of a float32, see `_extreme_keys`."""
    held = np.empty(1, np.float32)
    held[0] = value
    bits = held.view(np.int32)[0]
    return bits if bits >= 0 else np.int32(bits ^ np.int32(0x7FFFFFFF))


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
    tail = best.size
    for run in runs:
        if filled == tail and tops[run] <= _key(best[tail - 1]):
            continue
        begin, end = _block(starts, length, run // _RUNS)
        begin += run % _RUNS * _RUN
        for i in range(begin, min(begin + _RUN, end)):
            value = sign * x[i]
            if filled == tail and value <= best[tail - 1]:
                continue
            filled = min(filled + 1, tail)
            at = filled - 1
            while at > 0 and best[at - 1] < value:
                best[at] = best[at - 1]
                at -= 1
            best[at] = value + np.float32(0)
    return filled


def _top(kept: np.ndarray, data: _Lines, tops: np.ndarray, sign: int, tail: int) -> np.ndarray:
    """Return the `tail` greatest of `kept` and ``sign * x``, descending.

    Of many runs those with the greatest values come first: soon the least of the best lies
    above those of most others, which need not be read.
    """
    threshold = kept[-1] if kept.size == tail else np.float32(-math.inf)
    runs = np.flatnonzero(tops > _key(threshold))
    if runs.size > tail:  # the greatest of so many runs are all that is needed
        least = np.partition(tops[runs], runs.size - tail)[runs.size - tail]
        runs = runs[tops[runs] >= least]
    if runs.size > _FEW_RUNS:
        runs = runs[np.argsort(tops[runs])[::-1]]
    best = np.empty(tail, np.float32)
    best[: kept.size] = kept
    filled = _insert(
        data.memory, data.starts, data.length, runs, tops, np.float32(sign), best, kept.size
    )
    return best[:filled]

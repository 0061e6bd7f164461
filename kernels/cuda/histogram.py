"""Observing: counts, extremes, NaN, infinities, zeros and the outermost values in one pass.

The table of the default histogram, 32768 counters, is larger than the shared memory of a block.
A block therefore counts a window of bins in shared memory, and what falls beyond it by atomics
on the table in global memory. Several passes over ranges of bins would read the data again for
a few of its values: magnitudes crowd near zero, where the window lies, and one-sided data, as
after a ReLU, has all of its window on that side. Zeros, the value that would keep other threads
waiting, are counted in registers.

A pass counts with the bins as they are; where the data outgrows them it is counted again in
wider ones, which after the first batches is rare. The first pass of a new histogram, whose bins
are the narrowest, counts next to nothing and finds the extremes.

Values beyond the outermost kept so far are few: they go to a buffer by an atomic counter, and
the host sorts them. Where they are many, or none is kept yet, the counts tell where to cut; and
where even one bin holds too many, as of data that is clipped, halving finds the value to cut at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.cuda.arrays import empty, flat, on_device, zeros
from kernels.cuda.block import fold, sum_block
from kernels.cuda.jit import SIMULATED, THREADS, cuda, device_jit, grid, kernel, launch
from kernels.histogram import Seen, exponent_for, greatest, join

__all__ = ["count"]

#: Threads of a block that counts, and the bins of its window: 40 of the 48 KiB of shared memory.
_COUNTING = 4 if SIMULATED else 512
_WINDOW = 10 if SIMULATED else 10240
#: Blocks of a multiprocessor, at most: as many as its threads and shared memory allow.
_BLOCKS = 4
#: Values of a block, at least: each adds its window to the table in the end.
_SHARE = 8 if SIMULATED else 1 << 13
#: Values that are counted in one table: its counters are int32.
_MOST = 1 << 30
#: Places of a buffer for the outermost values, at least.
_PLACES = 4 if SIMULATED else 1 << 13

_ZERO = np.float32(0)
_LARGEST = np.finfo(np.float32).max
_INFINITY = np.float32(np.inf)

#: What `_scan` notes: the extremes, and how many values are NaN, infinite, not zero.
_LOW, _HIGH, _NANS, _INFINITIES, _OTHERS = range(5)


@device_jit
def _tally(v, factor, start, window, table, notes, under, over, lows, highs, n_beyond):
    """Count a value that is not zero in the window or the table; keep it if it lies beyond."""
    if v < under:
        place = cuda.atomic.add(n_beyond, 0, 1)
        if place < lows.size:
            lows[place] = v
    if v > over:
        place = cuda.atomic.add(n_beyond, 1, 1)
        if place < highs.size:
            highs[place] = v
    half = table.size // 2
    away = abs(v) * factor
    if away < np.float32(half):
        index = np.int32(away)
        bin_ = half + index if v > _ZERO else half - 1 - index
        inside = np.uint32(bin_ - start)  # far beyond the window for bins before it
        if inside < _WINDOW:
            cuda.atomic.add(window, inside, 1)
        else:
            cuda.atomic.add(table, bin_, 1)
    elif v != v:
        cuda.atomic.add(notes, _NANS, 1.0)
    elif abs(v) > _LARGEST:
        cuda.atomic.add(notes, _INFINITIES, 1.0)


@device_jit
def _lesser(a, b):
    """Return the lesser of two values."""
    return min(a, b)


@device_jit
def _greater(a, b):
    """Return the greater of two values."""
    return max(a, b)


_LEAST, _GREATEST = fold(_lesser), fold(_greater)


@kernel
def _scan(x, factor, start, table, notes, under, over, lows, highs, n_beyond):
    """Count values; note their extremes, and those below `under` or above `over`.

    Parameters
    ----------
    x : float32 array (n,)
    factor : float32
        ``2.0**-exponent``.
    start : int
        First bin of the window.
    table : int32 array (2 * half,)
    notes : float64 array (5,)
        Atomics on float64 are exact for whole numbers up to 2**53.
    under, over : float32
    lows, highs : float32 array
        Room for the values beyond; more than fit are counted only.
    n_beyond : int64 array (2,)
        How many values were below, and above.
    """
    window = cuda.shared.array(_WINDOW, np.int32)
    least = cuda.shared.array(_COUNTING, np.float32)
    most = cuda.shared.array(_COUNTING, np.float32)
    t = cuda.threadIdx.x
    for place in range(t, _WINDOW, _COUNTING):
        window[place] = 0
    cuda.syncthreads()
    low, high = _INFINITY, -_INFINITY
    others = 0
    n, step, i = np.uint64(x.size), np.uint64(cuda.gridsize(1)), np.uint64(cuda.grid(1))
    while i < n:
        # past the end a thread takes zeros, which are not counted here
        j, k, m = i + step, i + step + step, i + step + step + step
        a, b = x[i], x[j] if j < n else _ZERO
        c, d = x[k] if k < n else _ZERO, x[m] if m < n else _ZERO
        for v in (a, b, c, d):
            if v != _ZERO:
                low, high = v if v < low else low, v if v > high else high
                _tally(v, factor, start, window, table, notes, under, over, lows, highs, n_beyond)
                others += 1
        i = m + step
    least[t], most[t] = low, high
    cuda.syncthreads()
    for place in range(t, _WINDOW, _COUNTING):
        if window[place] > 0:
            cuda.atomic.add(table, start + place, window[place])
    cuda.syncthreads()
    window[t] = others
    _LEAST(least, t, _COUNTING)
    _GREATEST(most, t, _COUNTING)
    sum_block(window, t, _COUNTING)
    if t == 0:
        cuda.atomic.min(notes, _LOW, np.float64(least[0]))
        cuda.atomic.max(notes, _HIGH, np.float64(most[0]))
        cuda.atomic.add(notes, _OTHERS, np.float64(window[0]))


@kernel
def _gather(x, sign, least, out, n_above):
    """Copy the values of ``sign * x`` above `least`, in any order; count them all.

    A thread counts its own first, so that a block takes its places by one atomic.
    """
    block = cuda.shared.array(2, np.int64)
    t, step = cuda.threadIdx.x, cuda.gridsize(1)
    own = 0
    for i in range(np.uint64(cuda.grid(1)), np.uint64(x.size), np.uint64(step)):
        own += sign * x[i] > least
    if t == 0:
        block[0] = 0
    cuda.syncthreads()
    place = cuda.atomic.add(block, 0, own)
    cuda.syncthreads()
    if t == 0:
        block[1] = cuda.atomic.add(n_above, 0, block[0])
    cuda.syncthreads()
    place += block[1]
    if own == 0 or place >= out.size:
        return
    for i in range(np.uint64(cuda.grid(1)), np.uint64(x.size), np.uint64(step)):
        v = sign * x[i]
        if v > least and place < out.size:
            out[place] = v
            place += 1


@dataclass(frozen=True)
class _Pass:
    """What one pass found.

    Attributes
    ----------
    counts : int64 array (2 * half,)
        Zeros among them.
    low, high : float
    nans, infinities, zeros : int
    lows, highs : float32 array or None
        The values beyond those kept; None if they were too many.
    """

    counts: np.ndarray
    low: float
    high: float
    nans: int
    infinities: int
    zeros: int
    lows: np.ndarray | None
    highs: np.ndarray | None


def _window_start(low: float, high: float, exponent: int, half: int) -> int:
    """Return where the window begins that holds the bins of a range, or those next to zero."""
    width = math.ldexp(1.0, exponent)
    first = half - 1 - int(min(-low / width, half - 1)) if low < 0 else half
    last = half + int(min(high / width, half - 1)) if high > 0 else half - 1
    return max(min(max(half - _WINDOW // 2, first), last + 1 - _WINDOW), 0)


def _values(room: Any, number: int) -> np.ndarray | None:
    """Return what was put in a buffer; None if it did not fit."""
    if number > room.size:
        return None
    return room[:number].copy_to_host() if number else np.empty(0, np.float32)


def _pass(
    x: Any,
    exponent: int,
    half: int,
    likely: tuple[float, float],
    beyond: tuple[np.float32, np.float32],
    tail: int,
) -> _Pass:
    """Count the data in bins of a width; `likely` is the range it is expected in."""
    notes = on_device(np.array([math.inf, -math.inf, 0.0, 0.0, 0.0]))
    rooms = [empty(_places(tail), np.float32) for _ in range(2)]
    n_beyond, counts = zeros(2, np.int64), np.zeros(2 * half, np.int64)
    bins = np.float32(math.ldexp(1.0, -exponent)), _window_start(*likely, exponent, half)
    for begin in range(0, x.size, _MOST):
        part = x if x.size <= _MOST else x[begin : begin + _MOST]
        table = zeros(2 * half, np.int32)
        blocks = grid(part.size, _SHARE, _BLOCKS)
        launch(_scan, blocks, _COUNTING, part, *bins, table, notes, *beyond, *rooms, n_beyond)
        counts += table.copy_to_host()
    low, high, nans, infinities, others = notes.copy_to_host().tolist()
    none = x.size - int(others)
    counts[half] += none
    if none:
        low, high = min(low, 0.0), max(high, 0.0)
    beyond_values = [
        _values(room, int(n)) for room, n in zip(rooms, n_beyond.copy_to_host(), strict=True)
    ]
    return _Pass(counts, low, high, int(nans), int(infinities), none, *beyond_values)


def _places(tail: int) -> int:
    """Return the size of a buffer for values beyond the tail."""
    return 2 * tail + _PLACES


def _above(x: Any, sign: int, least: np.float32, tail: int) -> tuple[np.ndarray | None, int]:
    """Return the values of ``sign * x`` above the least, or None if too many, and how many."""
    room, n_above = empty(_places(tail), np.float32), zeros(1, np.int64)
    launch(_gather, grid(x.size), THREADS, x, np.float32(sign), least, room, n_above)
    number = int(n_above.copy_to_host()[0])
    return _values(room, number), number


def _key(value: np.float32) -> int:
    """Return an integer that ascends with float32 values."""
    bits = int(np.float32(value).view(np.int32))
    return bits if bits >= 0 else bits ^ 0x7FFFFFFF


def _of_key(key: int) -> np.float32:
    """Return the value of a key."""
    return np.int32(key if key >= 0 else key ^ 0x7FFFFFFF).view(np.float32)


def _outermost(
    x: Any, sign: int, top: float, counts: np.ndarray, exponent: int, tail: int
) -> np.ndarray:
    """Return values of ``sign * x`` among which are its `tail` greatest.

    Parameters
    ----------
    x : float32 device array (n,)
    sign : int
        1 or -1.
    top : float
        The greatest of ``sign * x``.
    counts : int64 array (2 * half,)
        Of ``sign * x``.
    exponent : int
        Of their bins.
    tail : int
    """
    least = -_INFINITY
    if x.size > tail:  # cut below the outermost bins that hold so many
        cut = counts.size - 1 - int(np.searchsorted(np.cumsum(counts[::-1]), tail))
        with np.errstate(over="ignore"):
            edge = np.float32(math.ldexp(cut - counts.size // 2, exponent))
        least = np.nextafter(edge, -_INFINITY)
    values, _ = _above(x, sign, least, tail)
    if values is not None:
        return values
    upper, lower, best = _key(np.float32(top)), _key(least), np.empty(0, np.float32)
    while upper - lower > 1:  # too many values lie above `lower`, less than a tail above `upper`
        middle = (upper + lower) // 2
        values, number = _above(x, sign, _of_key(middle), tail)
        if values is None:
            lower = middle
        elif number >= tail:
            return values
        else:
            upper, best = middle, values
    return np.concatenate([best, np.full(tail, _of_key(upper))])


def count(
    x: Any, counts: np.ndarray, exponent: int, ends: tuple[np.ndarray, np.ndarray], tail: int
) -> Seen:
    """See `kernels.reference.histogram.count`; `x` may lie on the device, `counts` does not."""
    data, half = flat(x), counts.size // 2
    smallest, largest = ends
    likely = (float(smallest[0]), float(largest[0])) if smallest.size else (0.0, 0.0)
    under = smallest[-1] if smallest.size == tail else -_INFINITY
    over = largest[-1] if largest.size == tail else _INFINITY
    first = result = _pass(data, exponent, half, likely, (under, over), tail)
    low, high = first.low, first.high
    if first.nans or first.infinities:
        return Seen(low, high, first.nans, first.infinities, 0, exponent, *ends)
    wider = max(exponent, exponent_for(max(-low, high), half))
    if wider > exponent:
        result = _pass(data, wider, half, (low, high), (-_INFINITY, _INFINITY), tail)
    none = np.zeros(min(first.zeros, tail), np.float32)
    if smallest.size < tail or low < smallest[-1]:
        lows = first.lows if smallest.size == tail else None
        if lows is None:
            outer_values = _outermost(data, -1, -low, result.counts[::-1], wider, tail)
        else:
            outer_values = np.concatenate([-lows, none])
        smallest = -greatest(-smallest, outer_values, tail)
    if largest.size < tail or high > largest[-1]:
        highs = first.highs if largest.size == tail else None
        if highs is None:
            outer_values = _outermost(data, 1, high, result.counts, wider, tail)
        else:
            outer_values = np.concatenate([highs, none])
        largest = greatest(largest, outer_values, tail)
    join(counts, wider - exponent)
    counts += result.counts
    return Seen(low, high, 0, 0, first.zeros, wider, smallest, largest)

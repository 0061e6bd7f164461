"""The greatest values of data beside those kept before, by what is known of its runs.

Runs whose greatest value is not above the least that is kept are not read again. Of the others
those with the greatest values come first: soon the least of what is kept lies above most of them.
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.codegen.bin_index import RUN
from kernels.cpu.jit import jit
from kernels.cpu.lines import BLOCK, block

__all__ = ["NOTHING", "RUNS", "float_of", "greatest_of", "insert_greatest", "key_of"]

#: Runs of a block; their extremes are noted, so that most are not read again.
RUNS = BLOCK // RUN
#: Up to so many runs are searched in the order they have.
_FEW_RUNS = 32
#: All values are above it.
NOTHING = np.float32(-np.inf)


@jit
def float_of(key):
    """Return the float32 of a key, see `kernels.cpu.codegen.bin_index`."""
    keys = np.empty(1, np.int32)
    keys[0] = key if key >= 0 else key ^ np.int32(0x7FFFFFFF)
    return keys.view(np.float32)[0]


@jit
def key_of(value):
    """Return the key of a float32."""
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
def _candidates(x, starts, length, runs, tops, sign, least, tail):
    """Return values of ``sign * x`` in some runs, the `tail` greatest above the least among them.

    Parameters
    ----------
    x, starts, length
        As for `greatest_of`.
    runs : int64 array
        Which to look at.
    tops : int32 array
        The key of the greatest value of every run.
    sign, least : float32
    tail : int
    """
    room = min(2 * tail, runs.size * RUN)
    pool, filled, least_key = np.empty(room + RUN, np.float32), 0, key_of(least)
    for run in runs:
        if tops[run] <= least_key:
            continue
        begin, end = block(starts, length, run // RUNS)
        begin += run % RUNS * RUN
        filled += _above(x[begin : min(begin + RUN, end)], sign, least, pool[filled:])
        if filled > room:
            best = np.partition(pool[:filled], filled - tail)[filled - tail :]
            pool[:tail] = best
            filled, least = tail, max(least, best.min())
            least_key = key_of(least)
    return pool[:filled]


@jit
def _merged(a, b, tail):
    """Return the `tail` greatest values of both, which descend."""
    best = np.empty(min(tail, a.size + b.size), np.float32)
    i, j = 0, 0
    for k in range(best.size):
        if j == b.size or (i < a.size and a[i] >= b[j]):
            best[k] = a[i]
            i += 1
        else:
            best[k] = b[j]
            j += 1
    return best


@jit
def insert_greatest(best, filled, above, x, starts, length, tops, sign):
    """Do as `greatest_of` in place, for a short tail and few runs that matter.

    Parameters
    ----------
    best : float32 array (tail,)
        Descending as far as it is filled.
    filled : int
    above, x, starts, length, tops, sign
        As for `greatest_of`.

    Returns
    -------
    int
        How much is filled now.
    """
    tail, found = best.size, np.empty(RUN, np.float32)
    least = max(above, best[tail - 1]) if filled == tail else above
    least_key = key_of(least)
    for run in range(tops.size):
        if tops[run] <= least_key:
            continue
        begin, end = block(starts, length, run // RUNS)
        begin += run % RUNS * RUN
        count = _above(x[begin : min(begin + RUN, end)], sign, least, found)
        for value in found[:count]:
            if value <= least:  # as it has risen
                continue
            at = min(filled, tail - 1)
            while at > 0 and best[at - 1] < value:
                best[at] = best[at - 1]
                at -= 1
            best[at] = value + np.float32(0)
            filled = min(filled + 1, tail)
            if filled == tail:
                least = max(above, best[tail - 1])
        least_key = key_of(least)
    return filled


@jit
def greatest_of(previous, above, x, starts, length, tops, sign, tail):
    """Return the `tail` greatest of `previous` and ``sign * x``, descending; -0 turns positive.

    Parameters
    ----------
    previous : float32 array
        Descending, `tail` at most.
    above : float32
        Values that are not above it are left out.
    x : float32 array (n,)
    starts, length : int64 array (lines,), int
        Where lines begin in `x`, and how long they are.
    tops : int32 array
        The key of the greatest value of every run.
    sign : float32
        1 or -1.
    tail : int

    Returns
    -------
    float32 array
    """
    least = max(above, previous[-1]) if previous.size == tail else above
    runs = np.flatnonzero(tops > key_of(least))
    if runs.size > tail:  # `tail` maxima are at least all values of other runs
        lowest = np.partition(tops[runs], runs.size - tail)[runs.size - tail]
        runs = runs[tops[runs] >= lowest]
    if runs.size > _FEW_RUNS:
        runs = runs[np.argsort(-tops[runs].astype(np.int64))]
    found = _candidates(x, starts, length, runs, tops, sign, least, tail)
    return _merged(previous, np.sort(found + np.float32(0))[::-1], tail)

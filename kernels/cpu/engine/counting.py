"""Histograms that steps of a program fill, while what they count is still near the core.

A `Counter` counts what the steps of a run show it, image after image, in one table; then a
histogram takes it (`kernels.Histogram.take`).
"""

from __future__ import annotations

import numba
import numpy as np

from kernels.cpu.bins import ends_of, join, scan, scan_parts, settle, values_at
from kernels.cpu.codegen.bin_index import TURNS, compiled
from kernels.cpu.codegen.native import bytes_at
from kernels.cpu.extremes import RUNS, greatest_of, insert_greatest, key_of
from kernels.cpu.jit import jit
from kernels.cpu.lines import BLOCK
from kernels.histogram import Seen

__all__ = ["MOST", "Counter", "count_lines"]

#: What a counter's record holds, int64: addresses, sizes, and what was found.
_FIELDS = (
    "place", "half", "tables", "exponents", "parts", "tail", "smallest", "largest",
    "total", "smallest_count", "largest_count", "nans", "infinities",
)  # fmt: skip
(
    _PLACE, _HALF, _TABLES, _EXPONENTS, _PARTS, _TAIL, _SMALLEST, _LARGEST, _TOTAL,
    _SMALLEST_COUNT, _LARGEST_COUNT, _NANS, _INFINITIES,
) = range(len(_FIELDS))  # fmt: skip
#: The extremes of all that was counted, and those beyond which values are collected.
_LOW, _HIGH, _BELOW, _ABOVE = range(4)
#: Tails in which values of so many runs are inserted one by one.
_SHORT, _FEW_RUNS = 256, 64
#: Values that pay for another thread, and threads that have a table.
_PART, _MOST_PARTS = 1 << 17, 4
#: Counters are int32: so many values may be there, and come at once.
MOST = 1 << 29


@jit
def _floats(address, count):
    """Return float32 values from an address on."""
    return bytes_at(address, 4 * count).view(np.float32)


@jit
def _note_bad(record, x, starts, length):
    """Note how many values are not finite."""
    for start in starts:
        for v in x[start : start + length]:
            record[_NANS] += np.isnan(v)
            record[_INFINITIES] += np.isinf(v)


@jit
def _tail(address, filled, above, x, starts, length, tops, sign, tail):
    """Collect extreme values in memory; return how many there are now."""
    best = _floats(address, tail)
    least = max(above, best[tail - 1]) if filled == tail else above
    if tail <= _SHORT and np.sum(tops > key_of(least)) <= _FEW_RUNS:
        return insert_greatest(best, filled, above, x, starts, length, tops, sign)
    found = greatest_of(best[:filled], above, x, starts, length, tops, sign, tail)
    best[: found.size] = found
    return found.size


@jit
def count_lines(counter, data, starts, length, threads):
    """Count lines of values.

    Parameters
    ----------
    counter : int
        Address of a record.
    data : int
        Address of the first value.
    starts : int64 array (lines,)
        Where lines begin, in values from there.
    length, threads : int
    """
    record = bytes_at(counter, 8 * (len(_FIELDS) + 2)).view(np.int64)
    ends = record[len(_FIELDS) :].view(np.float32)
    x, half = values_at(data, starts[-1] + length), record[_HALF]
    blocks = starts.size * ((length + BLOCK - 1) // BLOCK)
    lows, highs = np.empty(blocks * RUNS, np.int32), np.empty(blocks * RUNS, np.int32)
    lines = x, starts, length
    tables = bytes_at(record[_TABLES], 4 * record[_PARTS] * (2 * half + TURNS)).view(np.int32)
    tables = tables.reshape(record[_PARTS], 2 * half + TURNS)
    exponents = bytes_at(record[_EXPONENTS], 8 * record[_PARTS]).view(np.int64)
    parts = min(threads, record[_PARTS], max(1, starts.size * length // _PART))
    if parts == 1:
        alone = 0, blocks, exponents[0], tables[0], False
        exponents[0] = scan(record[_PLACE], *lines, *alone, lows, highs)
    else:
        cuts = np.arange(parts + 1) * blocks // parts
        shared = (cuts[:-1], cuts[1:]), exponents, tables, False
        scan_parts(record[_PLACE], *lines, *shared, lows, highs)
    low, high = ends_of(lows, highs)
    if not (np.isfinite(low) and np.isfinite(high)):
        _note_bad(record, *lines)
        return
    record[_TOTAL] += starts.size * length
    ends[_LOW], ends[_HIGH] = min(ends[_LOW], low), max(ends[_HIGH], high)
    tail = record[_TAIL]
    if low < ends[_BELOW]:
        kept, above, sign = record[_SMALLEST_COUNT], -ends[_BELOW], np.float32(-1)
        kept = _tail(record[_SMALLEST], kept, above, x, starts, length, ~lows, sign, tail)
        record[_SMALLEST_COUNT] = kept
    if high > ends[_ABOVE]:
        found, above, sign = record[_LARGEST_COUNT], ends[_ABOVE], np.float32(1)
        found = _tail(record[_LARGEST], found, above, x, starts, length, highs, sign, tail)
        record[_LARGEST_COUNT] = found


class Counter:
    """Counts what steps show it.

    Parameters
    ----------
    half, tail, exponent : int
        Of the histogram that will take it.
    below, above : float
        Beyond which values are among the extreme ones.

    Attributes
    ----------
    address : int
        What a step is told.
    """

    def __init__(self, half: int, tail: int, exponent: int, below: float, above: float) -> None:
        parts = min(numba.get_num_threads(), _MOST_PARTS)
        self._tables = np.zeros((parts, 2 * half + TURNS), np.int32)
        self._exponents = np.full(parts, exponent)
        self._tails = np.empty((2, tail), np.float32)
        self._record = np.zeros(len(_FIELDS) + 2, np.int64)
        self._ends = self._record[len(_FIELDS) :].view(np.float32)
        arrays = self._tables, self._exponents, *self._tails
        tables, exponents, *tails = (array.ctypes.data for array in arrays)
        self._record[:_TOTAL] = compiled()[0], half, tables, exponents, parts, tail, *tails
        self._ends[:] = np.inf, -np.inf, below, above
        self.address = self._record.ctypes.data

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self._record[_TOTAL])

    @property
    def full(self) -> bool:
        """Whether it must be taken before more is counted."""
        return self.total >= MOST

    def settle(self, counts: np.ndarray, exponent: int) -> Seen:
        """Add all to the counts of a histogram, and begin anew; see `Seen`.

        Extreme values are those counted here alone. Nothing is added if a value was not finite.
        """
        record, (low, high, _, _) = self._record, self._ends
        bad = int(record[_NANS]), int(record[_INFINITIES])
        tails = zip(self._tails, record[[_SMALLEST_COUNT, _LARGEST_COUNT]], strict=True)
        smallest, largest = (values[:count].copy() for values, count in tails)
        wider, zeros = exponent, 0
        if any(bad):
            self._tables[:] = 0
        elif record[_TOTAL]:
            wider = max(exponent, int(self._exponents.max()))
            join(counts, counts.size // 2, wider - exponent)
            ends = float(low), float(high)
            zeros = settle(self._tables, self._exponents, counts, wider, *ends)
        record[_TOTAL:] = 0
        self._exponents[:] = wider
        self._ends[:] = np.inf, -np.inf, np.inf, -np.inf
        return Seen(float(low), float(high), *bad, zeros, wider, -smallest, largest)

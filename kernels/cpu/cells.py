"""The squared errors of IFMR's candidates by counting: exact sums, for all candidates at once.

A candidate maps every value to a multiple of its scale, and the map rises in steps. The steps of
all candidates together cut the axis into cells; what is needed of the values in a cell is how many
they are and their sum. So each value is looked at once, not once a candidate.

Magnitudes are written as ``(bin + d / UNITS) * 2**exponent``, exactly; positive and negative values
have bins of their own. A bin through which edges pass is several cells. The loss of a candidate is,
for the values between two of its edges, which it maps to ``c`` (in bins, ``B`` its integer part and
``f`` the rest), with ``k = bin - B``::

    sum((f - k - d)**2) = f*f*n + sum(k*k) + sum(d*d) - 2*f*(sum(k) + sum(d)) + 2*sum(k*d)

All sums but those of ``d * d`` are differences of prefix sums over the cells, and integers. The
differences of floats that the definition rounds are exact here: where a value is more than twice
what it is mapped to it is left to the definition, as are those beyond the bins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numba
import numpy as np

from kernels.cpu.cell_edges import BINS, UNITS, edge_tables, find_edges, sort_edges
from kernels.cpu.jit import jit
from kernels.cpu.threads import spread

__all__ = ["Cells", "make_cells"]

#: A cell is one integer: how many values, times this, plus the sum of their `d`.
_ONE = 1 << 44
_MOST = (1 << 20) - 1
#: Values whose rounded sums are added on their own, and those that pass through the first cache.
_CHUNK, _BLOCK = 1 << 16, 1 << 10
#: Steps that a candidate may have on one side.
_MOST_STEPS = 512
#: Scales within which neither bins nor parts of them leave the normal float32.
_SCALES = 2.0**-80, 2.0**100
#: A loss below this many squared bins a value would lose digits.
_LEAST_LOSS = 1e-3

_LOCAL = threading.local()

#: ``rest(values, losses)`` fills in the losses of all candidates by the definition.
Rest = Callable[[np.ndarray, np.ndarray], None]


@jit
def _suits(x, low, high):
    """Whether all values are within the range, and none is zero."""
    bad = np.int32(0)
    for i in range(x.size):
        bad += np.int32(not ((x[i] >= low) & (x[i] <= high) & (x[i] != 0)))
    return bad == 0


@jit
def _sift(x, low, high, kept, rest):
    """Copy values within the range, but zeros, and those that are not; return how many each."""
    n, m = np.uint64(0), np.uint64(0)
    for i in range(x.size):
        v = x[i]
        inside = (v >= low) & (v <= high)
        kept[n] = v
        n += np.uint64(inside & (v != 0))
        rest[m] = v
        m += np.uint64(not inside)
    return np.int64(n), np.int64(m)


@jit
def _count(x, factor, tables, cells, keys, ds):
    """Count some values in their cells.

    Returns
    -------
    tuple of (float, int)
        The sum of squares of values in the first bins, which all candidates map to 0, and that of
        `d` of the others.
    """
    first, sorted_parts, table = tables
    near, near_count, squares = 0.0, np.int64(0), np.int64(0)
    for i in range(x.size):
        y = abs(x[i]) * factor
        b = np.int32(y)
        d = np.int32((y - np.float32(b)) * np.float32(UNITS))
        keys[i] = b + (np.int32(BINS) if x[i] < 0 else np.int32(0))
        ds[i] = d if b > 0 else np.int32(0)
    for i in range(x.size):
        squares += np.int64(ds[i]) * np.int64(ds[i])
        near_count += keys[i] & np.int32(BINS - 1) == 0
    for i in range(x.size if near_count else 0):
        if keys[i] & np.int32(BINS - 1) == 0:
            near += np.float64(x[i]) ** 2
    for i in range(x.size):
        k, d = np.uint32(keys[i]), ds[i]
        c = table[k, 0]
        if c >= 0:
            c += (d >= table[k, 1]) + (d >= table[k, 2]) + (d >= table[k, 3])
        else:
            c = -1 - c
            for e in range(first[k], first[k + 1]):
                c += d >= sorted_parts[e]
        cells[np.uint32(c)] += _ONE + d
    return near, squares


@jit
def _count_chunks(x, limits, factor, tables, cells, near, squares):
    """Count the chunks of some values; return those left to the definition, and their chunks."""
    kept, rest = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    keys, ds = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.int32)
    left, left_of, left_count = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.int32), 0
    near[:], squares[:] = 0, 0
    for begin in range(0, x.size, _BLOCK):
        chunk, values = begin // _CHUNK, x[begin : begin + _BLOCK]
        if not _suits(values, limits[0], limits[1]):
            n, m = _sift(values, limits[0], limits[1], kept, rest)
            values = kept[:n]
            if left_count + m > left.size:
                left = np.concatenate((left, np.empty_like(left)))
                left_of = np.concatenate((left_of, np.empty_like(left_of)))
            left[left_count : left_count + m] = rest[:m]
            left_of[left_count : left_count + m] = chunk
            left_count += m
        found = _count(values, factor, tables, cells, keys, ds)
        near[chunk] += found[0]
        squares[chunk] += found[1]
    return left[:left_count], left_of[:left_count]


@jit
def _add_sums(cells, first, sums):
    """Add the sums of all cells below each edge to its line, and begin anew.

    Lines are the sums of 1, bin, bin * bin, d, bin * d; behind those of the edges come those at the
    end of each side.
    """
    edges = first[2 * BINS]
    n = b1 = b2 = d1 = bd = np.int64(0)
    for k in range(2 * BINS):
        begin, end = first[k], first[k + 1]
        b = np.int64(k & (BINS - 1))
        for e in range(begin, end + 1):
            one = cells[k + e]
            if one != 0:
                cells[k + e] = 0
                if b > 0:
                    count, d = one // _ONE, one % _ONE
                    n += count
                    b1 += b * count
                    b2 += b * b * count
                    d1 += d
                    bd += b * d
            line = e if e < end else -1
            if line < 0 and b == BINS - 1:
                line = edges + k // BINS
            if line >= 0:
                s = sums[line]
                s[0] += n
                s[1] += b1
                s[2] += b2
                s[3] += d1
                s[4] += bd


@jit
def _between(s, t, c, unit):
    """Return the squared errors of values between two lines of sums that are mapped to c."""
    n = t[0] - s[0]
    if n == 0:
        return 0.0
    whole = np.int64(c)
    f = c - whole
    k1 = t[1] - s[1] - whole * n
    k2 = t[2] - s[2] - 2 * whole * (t[1] - s[1]) + whole * whole * n
    d1 = t[3] - s[3]
    kd = t[4] - s[4] - whole * d1
    return f * f * n + k2 - 2.0 * f * (k1 + d1 * unit) + 2.0 * kd * unit


@jit
def _losses(steps, scales, factor, ranks, edges, sums, losses):
    """Fill in the losses but for sum(d * d), in squared bins."""
    e, zero, unit = 0, np.zeros(5, np.int64), 1.0 / UNITS
    for r in range(scales.size):
        total = 0.0
        for side in range(2):
            below = zero if side == 0 else sums[edges]
            for n in range(steps[r, side] + 1):
                line = edges + side
                if n < steps[r, side]:
                    line = ranks[e] if ranks[e] >= 0 else line
                    e += 1
                c = np.float64(np.float32(n) * scales[r] * factor)
                total += _between(below, sums[line], c, unit)
                below = sums[line]
        losses[r] = total


@dataclass(frozen=True)
class Cells:
    """The cells of some candidates.

    Attributes
    ----------
    scales : float32 array (R,)
    steps : int64 array (R, 2)
        Steps of each candidate above and below zero.
    limits : (float, float)
        Values beyond are left to the definition.
    width : float
        Of a bin.
    ranks : int32 array (edges,)
        The order of the edges of all steps; -1 of those beyond all bins.
    tables : tuple of int32 array
        See `kernels.cpu.cell_edges`.
    """

    scales: np.ndarray
    steps: np.ndarray
    limits: tuple[np.float32, np.float32]
    width: float
    ranks: np.ndarray
    tables: tuple[np.ndarray, ...]

    def losses(self, x: np.ndarray, rest: Rest) -> np.ndarray | None:
        """Return the squared errors of all candidates; None if digits would be lost.

        Parameters
        ----------
        x : float32 array (n,), contiguous
        rest : callable
            Fills in the errors of the values that do not fit.
        """
        first, factor = self.tables[0], np.float32(1 / self.width)
        edges = int(first[-1])
        sums = np.zeros((edges + 2, 5), np.int64)
        chunks = -(-x.size // _CHUNK)
        near, squares = np.empty(chunks), np.empty(chunks, np.int64)
        left: list[tuple[int, np.ndarray, np.ndarray]] = []
        parts = min(numba.get_num_threads(), chunks)
        most = parts * (_MOST // _CHUNK)
        memory = _memory(parts, 2 * BINS + edges)
        for begin in range(0, chunks, most):
            end = min(begin + most, chunks)
            cuts = [begin + (end - begin) * p // parts for p in range(parts + 1)]
            spread(
                [
                    partial(self._part, x, a, b, factor, table, near, squares, left)
                    for a, b, table in zip(cuts[:-1], cuts[1:], memory, strict=False)
                ]
            )
            for table in memory[:parts]:
                _add_sums(table, first, sums)
        _LOCAL.memory = memory
        losses = np.empty(self.scales.size)
        _losses(self.steps, self.scales, factor, self.ranks, edges, sums, losses)
        losses += float(sum(squares.tolist())) / UNITS**2
        if losses.min() < _LEAST_LOSS * sums[edges + 1, 0]:
            return None
        losses = losses * self.width**2 + near.sum()
        for _, values, of_chunk in sorted(left, key=lambda item: item[0]):
            for c in np.unique(of_chunk):
                more = np.empty(losses.size)
                rest(values[of_chunk == c], more)
                losses += more
        return losses

    def _part(
        self,
        x: np.ndarray,
        begin: int,
        end: int,
        factor: np.float32,
        table: np.ndarray,
        near: np.ndarray,
        squares: np.ndarray,
        left: list[tuple[int, np.ndarray, np.ndarray]],
    ) -> None:
        """Count some chunks."""
        values = x[begin * _CHUNK : end * _CHUNK]
        into = table, near[begin:end], squares[begin:end]
        found, of_chunk = _count_chunks(values, self.limits, factor, self.tables, *into)
        if found.size:
            left.append((begin, found, of_chunk))


def _memory(parts: int, size: int) -> np.ndarray:
    """Take tables of zeros from this thread; they are given back as zeros."""
    memory = getattr(_LOCAL, "memory", None)
    _LOCAL.memory = None  # after an exception partly filled ones are not used again
    if memory is None or memory.shape[0] < parts or memory.shape[1] < size:
        return np.zeros((parts, size + size // 4), np.int64)
    return memory


def make_cells(lows: np.ndarray, highs: np.ndarray, scales: np.ndarray) -> Cells | None:
    """Return the cells of some candidates; None where they do not suit them.

    Parameters
    ----------
    lows, highs, scales : float32 array (R,)
        As for `kernels.reference.ifmr.squared_errors`.
    """
    least, greatest = float(scales.min()), float(scales.max())
    zero_inside = lows.max() <= 0 <= highs.min()
    if not (zero_inside and _SCALES[0] <= least and greatest <= _SCALES[1]):
        return None
    ends = np.stack([highs, -lows], axis=1)
    # as the definition rounds: half away from zero
    steps = np.floor(ends / scales[:, None] + np.float32(0.49999997)).astype(np.int64)
    if steps.max() > _MOST_STEPS:
        return None
    furthest = steps.astype(np.float32) * scales[:, None]
    # beyond twice the last multiple a difference may be rounded; what is mapped to 0 is exact
    reach = [2 * side[side > 0].min() if side.any() else np.float32(0) for side in furthest.T]
    if not max(reach) > 0:
        return None
    width = float(np.exp2(np.ceil(np.log2(float(max(reach)))))) / BINS
    if least < 4 * width:
        return None
    end = np.nextafter(np.float32(BINS * width), np.float32(0))
    above, below = (min(r, end) if r > 0 else end for r in reach)
    count = int(steps.sum())
    bins, parts = np.empty((2, count), np.int32)
    find_edges(steps, scales, np.float32(1 / width), bins, parts)
    first, ranks = np.empty(2 * BINS + 1, np.int32), np.full(count, -1, np.int32)
    sorted_parts = np.empty(count, np.int32)
    sort_edges(bins, parts, first, ranks, sorted_parts)
    table = np.empty((2 * BINS, 4), np.int32)
    edge_tables(first, sorted_parts, table)
    tables = first, sorted_parts, table
    return Cells(scales, steps, (-below, above), width, ranks, tables)

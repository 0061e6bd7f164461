"""The losses that searches on a histogram compare: candidates in parallel over its bins."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numba
import numpy as np

from kernels.cpu.ifmr import distance, pair_sum
from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange
from kernels.cpu.threads import spread

__all__ = ["bin_errors", "divergences", "hfmg_errors", "hfmg_ranges"]

_BLOCK = 1 << 10


def _spread(count: int, work: Callable[[slice], None]) -> None:
    """Do the work for so many candidates, an equal share on each core."""
    parts = max(1, min(numba.get_num_threads(), count))
    ends = [count * part // parts for part in range(parts + 1)]
    spread([lambda a=a, b=b: work(slice(a, b)) for a, b in pairwise(ends)])  # type: ignore[misc]


@jit
def _nodes(left, right, counts, at, weight):
    """Turn bins into the ends of runs of them; return how many.

    The loss of bins is the sum over their ends of weight times integral; the weight is the drop
    of the density at the end. Adjacent bins share an end.
    """
    n = 0
    for b in range(left.size):
        if right[b] > left[b]:
            density = counts[b] / (right[b] - left[b])
            if n == 0 or at[n - 1] != left[b]:
                at[n], weight[n] = left[b], 0.0
                n += 1
            weight[n - 1] -= density
            at[n], weight[n] = right[b], density
            n += 1
    return n


@jit
def _integrals(at, weight, low, high, s, out):
    """Integrate up to each end, see `kernels.reference.search.integral`, and weigh it.

    The integral is continuous, so that it makes no difference which way a half is rounded.
    """
    cube, share = s * s * s, 1 / s
    for i in range(at.size):
        t = at[i]
        inner = t if t > low else low
        inner = inner if inner < high else high
        q = inner * share
        m = np.rint(q)
        d = q - m
        inside = cube * (m * (1 / 12) + d * d * d * (1 / 3))
        beyond, to_end = t - m * s, inner - m * s
        outside = (beyond * beyond * beyond - to_end * to_end * to_end) * (1 / 3)
        out[i] = weight[i] * (inside + outside)


@jit
def _integrals_inside(at, weight, s, out):
    """As `_integrals` for ends within the range: nothing is cut off."""
    cube, share = s * s * s, 1 / s
    for i in range(at.size):
        q = at[i] * share
        m = np.rint(q)
        d = q - m
        out[i] = weight[i] * (cube * (m * (1 / 12) + d * d * d * (1 / 3)))


@jit
def _point_errors(points, counts, low, high, s):
    """Return the summed squared error of single values, in float32 as on data."""
    low32, high32, step, total = np.float32(low), np.float32(high), np.float32(s), 0.0
    for i in range(points.size):
        d = distance(np.float32(points[i]), low32, high32, step)
        total += counts[i] * np.float64(d) * np.float64(d)
    return total


@jit
def _bin_error(at, weight, points, counts, low, high, s):
    """Return the loss of one candidate on bins and single values, see `bin_errors`."""
    out, loss = np.empty(_BLOCK), _point_errors(points, counts, low, high, s)
    for first in range(0, at.size, _BLOCK):
        block, weights = at[first : first + _BLOCK], weight[first : first + _BLOCK]
        if low <= block[0] and block[-1] <= high:  # ends ascend
            _integrals_inside(block, weights, s, out)
        else:
            _integrals(block, weights, low, high, s, out)
        for i in range(block.size, _BLOCK):
            out[i] = 0
        loss += pair_sum(out)
    return loss


@parallel_jit
def _bin_errors(at, weight, points, counts, lows, highs, scales, losses):
    """Fill in the losses of all candidates, float64 (R,)."""
    for r in prange(scales.size):
        losses[r] = _bin_error(at, weight, points, counts, lows[r], highs[r], scales[r])


def bin_errors(
    left: np.ndarray,
    right: np.ndarray,
    counts: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    scales: np.ndarray,
) -> np.ndarray:
    """See `kernels.reference.search.bin_errors`; sums agree to rounding of float64."""
    point = right <= left
    at, weight = np.empty((2, 2 * left.size))
    n = _nodes(left, right, counts, at, weight)
    bins = at[:n], weight[:n], left[point], counts[point]
    losses = np.empty(scales.size)
    with parallel_entry():
        _bin_errors(*bins, lows, highs, scales, losses)
    return losses


@jit
def _levels(centres, low, scale, out):
    """Fill in the level of each bin, as float64: halves go to even ones."""
    for i in range(centres.size):
        out[i] = np.rint((centres[i] - low) / scale)


@jit
def _clipped(count, clipped, log, spread):
    """Return what a bin's term grows by when clipped values are added to its count."""
    both = count + clipped
    return both * (np.log(both) - spread) - count * (log - spread)


@jit
def _divergence(counts, logs, level, levels):
    """Return the divergence, times the number of values, of bins on these levels."""
    first, last, below, above = 0, level.size, 0.0, 0.0
    while first < last and level[first] < 0:
        below += counts[first]
        first += 1
    while last > first and level[last - 1] >= levels:
        last -= 1
        above += counts[last]
    total, begin = 0.0 if first < last else np.inf, first
    while begin < last:
        end, level_count = begin, 0.0
        while end < last and level[end] == level[begin]:
            level_count += counts[end]
            end += 1
        spread = np.log(level_count / (end - begin))
        for i in range(begin, end):
            total += counts[i] * (logs[i] - spread)
        if begin == first:
            clipped = below + above if last - first == 1 else below
            total += _clipped(counts[first], clipped, logs[first], spread)
        if end == last and last - first > 1:
            total += _clipped(counts[last - 1], above, logs[last - 1], spread)
        begin = end
    return total


@jit
def _divergences(centres, counts, logs, lows, scales, levels, losses):
    """Fill in the divergences of all candidates, float64 (R,); `logs` are those of the counts."""
    level, number = np.empty(centres.size), 0.0
    for i in range(counts.size):
        number += counts[i]
    for r in range(losses.size):
        _levels(centres, lows[r], scales[r], level)
        losses[r] = _divergence(counts, logs, level, levels) / number


def divergences(
    centres: np.ndarray, counts: np.ndarray, lows: np.ndarray, scales: np.ndarray, levels: int
) -> np.ndarray:
    """See `kernels.reference.search.divergences`; sums agree to rounding of float64."""
    losses = np.empty(scales.size)
    bins = centres, counts, np.log(counts)
    _spread(
        scales.size,
        lambda part: _divergences(*bins, lows[part], scales[part], levels, losses[part]),
    )
    return losses


@jit
def _trims(before, step, ranges):
    """Fill in the ranges; return how many. `before` is the count below each bin's begin."""
    bins = before.size - 1
    least = (bins + 3) // 4
    left, right, next_left, next_right, n = 0, bins - 1, 0, bins - 1, 0
    while right - left > least:
        while before[next_left] < before[left] + step:
            next_left += 1
        while before[next_right + 1] > before[right + 1] - step:
            next_right -= 1
        if next_left - left > right - next_right:
            left = next_left
        else:
            right = next_right
        if right < left:  # the counts at one end lay beyond those at the other
            break
        ranges[n, 0], ranges[n, 1] = left, right
        n += 1
    return n


def hfmg_ranges(counts: np.ndarray) -> np.ndarray:
    """See `kernels.reference.search.hfmg_ranges`."""
    before = np.concatenate([[0], np.cumsum(counts)])
    ranges = np.empty((counts.size, 2), np.int64)
    return ranges[: _trims(before, max(1, -(-int(before[-1]) // 100_000)), ranges)]


@jit
def _hfmg_integrals(first, left, width, part, levels, out):
    """Integrate up to the begin of each bin from `first` on."""
    share, cube, top, begin = width / part, part * part * part, levels - 1.0, first - left + 0.0
    for i in range(out.size):
        t = (begin + np.float64(np.int32(i))) * share
        cell = np.floor(t)
        cell = cell if cell > 0.0 else 0.0
        cell = cell if cell < top else top
        d = t - (cell + 0.5)
        out[i] = cube * (cell * (1 / 12) + d * d * d * (1 / 3))


@jit
def _weigh(counts, integrals, out):
    """Fill in ``counts[i] * (integrals[i + 1] - integrals[i])``."""
    for i in range(counts.size):
        out[i] = counts[i] * (integrals[i + 1] - integrals[i])


@jit
def _hfmg_errors(counts, candidates, width, levels, losses):
    """Fill in the errors of all candidates, float64 (R,)."""
    integrals, out = np.empty(_BLOCK + 1), np.empty(_BLOCK)
    for r in range(losses.size):
        left, right, total = candidates[r, 0], candidates[r, 1], 0.0
        part = width * (right - left + 1) / levels
        for first in range(0, counts.size, _BLOCK):
            block = counts[first : first + _BLOCK]
            _hfmg_integrals(first, left, width, part, levels, integrals[: block.size + 1])
            _weigh(block, integrals, out)
            for i in range(block.size, _BLOCK):
                out[i] = 0
            total += pair_sum(out)
        losses[r] = total / width


def hfmg_errors(
    counts: np.ndarray, candidates: np.ndarray, width: float, levels: int
) -> np.ndarray:
    """See `kernels.reference.search.hfmg_errors`; sums agree to rounding of float64."""
    wide, losses = counts.astype(np.float64), np.empty(len(candidates))
    _spread(
        losses.size, lambda part: _hfmg_errors(wide, candidates[part], width, levels, losses[part])
    )
    return losses

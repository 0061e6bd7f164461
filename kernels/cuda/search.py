"""The losses that searches on a histogram compare: a block a candidate.

A block's threads share the bins, or the levels, and add in a fixed order. All of it is
float64 but for single values, which count in float32 as on data. The losses go back to the
host, which chooses.
"""

from __future__ import annotations

import math

import numpy as np

from kernels.cuda.arrays import empty, on_device
from kernels.cuda.block import sum_block
from kernels.cuda.ifmr import distance
from kernels.cuda.jit import THREADS, cuda, device_jit, grid, kernel, launch

__all__ = ["bin_errors", "divergences", "hfmg_errors", "hfmg_ranges"]


@device_jit
def _total(partial_sums, value):
    """Return the sum of a value of each thread of the block to all of them.

    `partial_sums` is in shared memory.
    """
    t = cuda.threadIdx.x
    cuda.syncthreads()
    partial_sums[t] = value
    sum_block(partial_sums, t, THREADS)
    return partial_sums[0]


@device_jit
def _integral(t, low, high, s):
    """See `kernels.reference.search.integral`, which is continuous: any half may round up."""
    inner = t if t > low else low
    inner = inner if inner < high else high
    q = inner / s
    m = math.floor(q + 0.5)
    d = q - m
    inside = s * s * s * (m * (1 / 12) + d * d * d * (1 / 3))
    beyond, to_end = t - m * s, inner - m * s
    return inside + (beyond * beyond * beyond - to_end * to_end * to_end) * (1 / 3)


@kernel
def _bin_errors(left, right, weights, lows, highs, scales, losses):
    """Fill in the losses, float64 (R,); `weights` are counts over widths, or counts of values."""
    partial_sums = cuda.shared.array(THREADS, np.float64)
    for r in range(cuda.blockIdx.x, scales.size, cuda.gridDim.x):
        low, high, s, loss = lows[r], highs[r], scales[r], 0.0
        low32, high32, step = np.float32(low), np.float32(high), np.float32(s)
        for b in range(cuda.threadIdx.x, left.size, THREADS):
            if right[b] > left[b]:
                area = _integral(right[b], low, high, s) - _integral(left[b], low, high, s)
            else:
                d = np.float64(distance(np.float32(left[b]), low32, high32, step))
                area = d * d
            loss += weights[b] * area
        loss = _total(partial_sums, loss)
        if cuda.threadIdx.x == 0:
            losses[r] = loss


@device_jit
def _begin(centres, low, scale, level):
    """Return the first bin of a level or a later one: levels ascend with the bins."""
    first, last = 0, centres.size
    while first < last:
        i = (first + last) // 2
        # halves to even, see `kernels.reference.search.divergences`
        if round((centres[i] - low) / scale) < level:
            first = i + 1
        else:
            last = i
    return first


@device_jit
def _clipped(count, clipped, spread):
    """Return what a bin's term grows by when clipped values are added to its count."""
    both = count + clipped
    return both * (math.log(both) - spread) - count * (math.log(count) - spread)


@kernel
def _divergences(centres, before, logs_before, lows, scales, levels, losses):
    """Fill in the divergence of each candidate, a thread a level.

    `before` is the count of the values below each bin's begin, `logs_before` the sum of
    ``count * log(count)`` of the bins there: a level needs no more than its ends.
    """
    partial_sums = cuda.shared.array(THREADS, np.float64)
    number = before[centres.size]
    for r in range(cuda.blockIdx.x, losses.size, cuda.gridDim.x):
        low, scale, total = lows[r], scales[r], 0.0
        first, last = _begin(centres, low, scale, 0), _begin(centres, low, scale, levels)
        below, above = before[first], number - before[last]
        for level in range(cuda.threadIdx.x, levels, THREADS):
            begin = _begin(centres, low, scale, level)
            end = _begin(centres, low, scale, level + 1)
            if begin < end:
                level_count = before[end] - before[begin]
                spread = math.log(level_count / (end - begin))
                total += logs_before[end] - logs_before[begin] - level_count * spread
                if begin == first:
                    clipped = below + above if last - first == 1 else below
                    total += _clipped(before[first + 1] - before[first], clipped, spread)
                if end == last and last - first > 1:
                    total += _clipped(before[last] - before[last - 1], above, spread)
        total = _total(partial_sums, total)
        if cuda.threadIdx.x == 0:
            losses[r] = total / number if first < last else math.inf


@device_jit
def _hfmg_integral(i, left, share, top):
    """Integrate up to the begin of a bin, in parts of the range."""
    t = (i - left) * share
    cell = math.floor(t)
    cell = cell if cell > 0.0 else 0.0
    cell = cell if cell < top else top
    d = t - (cell + 0.5)
    return cell * (1 / 12) + d * d * d * (1 / 3)


@kernel
def _hfmg_errors(counts, candidates, width, levels, losses):
    """Fill in the losses, float64 (R,), of candidates (R, 2): first and last bin."""
    partial_sums = cuda.shared.array(THREADS, np.float64)
    for r in range(cuda.blockIdx.x, losses.size, cuda.gridDim.x):
        left, loss = candidates[r, 0], 0.0
        part = width * (candidates[r, 1] - left + 1) / levels
        share, top = width / part, levels - 1.0
        for i in range(cuda.threadIdx.x, counts.size, THREADS):
            if counts[i] != 0:
                cubes = _hfmg_integral(i + 1, left, share, top)
                loss += counts[i] * (cubes - _hfmg_integral(i, left, share, top))
        loss = _total(partial_sums, loss)
        if cuda.threadIdx.x == 0:
            losses[r] = loss * (part * part * part) / width


def bin_errors(
    left: np.ndarray,
    right: np.ndarray,
    counts: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    scales: np.ndarray,
) -> np.ndarray:
    """See `kernels.reference.search.bin_errors`; sums agree to rounding of float64."""
    width = right - left
    bins = left, right, counts / np.where(width > 0, width, 1.0)
    losses = empty(scales.size, np.float64)
    arrays = [on_device(a) for a in (*bins, lows, highs, scales)]
    launch(_bin_errors, grid(scales.size, 1), THREADS, *arrays, losses)
    return losses.copy_to_host()


def _sums_before(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(values)])


def divergences(
    centres: np.ndarray, counts: np.ndarray, lows: np.ndarray, scales: np.ndarray, levels: int
) -> np.ndarray:
    """See `kernels.reference.search.divergences`; sums agree to rounding of float64."""
    before = _sums_before(counts), _sums_before(counts * np.log(counts))
    arrays = [on_device(a) for a in (centres, *before, lows, scales)]
    losses = empty(scales.size, np.float64)
    launch(_divergences, grid(scales.size, 1), THREADS, *arrays, levels, losses)
    return losses.copy_to_host()


def hfmg_ranges(counts: np.ndarray) -> np.ndarray:
    """See `kernels.reference.search.hfmg_ranges`: one step after the other, on the host."""
    before = np.concatenate([[0], np.cumsum(counts)])
    step, bins = max(1, -(-int(before[-1]) // 100_000)), counts.size
    # where either end would go from each bin
    lefts = np.searchsorted(before, before[:-1] + step).tolist()
    rights = (np.searchsorted(before, before[1:] - step, side="right") - 2).tolist()
    left, right = 0, bins - 1
    ranges = []
    while right - left > -(-bins // 4):
        if lefts[left] - left > right - rights[right]:
            left = lefts[left]
        else:
            right = rights[right]
        if right < left:  # the counts at one end lay beyond those at the other
            break
        ranges.append((left, right))
    return np.array(ranges, np.int64).reshape(-1, 2)


def hfmg_errors(
    counts: np.ndarray, candidates: np.ndarray, width: float, levels: int
) -> np.ndarray:
    """See `kernels.reference.search.hfmg_errors`; sums agree to rounding of float64."""
    losses = empty(len(candidates), np.float64)
    arrays = on_device(counts.astype(np.float64)), on_device(candidates)
    launch(_hfmg_errors, grid(losses.size, 1), THREADS, *arrays, float(width), levels, losses)
    return losses.copy_to_host()

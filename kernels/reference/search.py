"""The losses that searches on a histogram compare, in NumPy: the definition."""

from __future__ import annotations

import numpy as np

from kernels.rounding import round_half_away

__all__ = ["bin_errors", "divergences", "hfmg_errors", "hfmg_ranges"]


def bin_errors(
    left: np.ndarray,
    right: np.ndarray,
    counts: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    scales: np.ndarray,
) -> np.ndarray:
    """Return the summed squared error of each candidate on binned data, float64 (R,).

    The values of a bin are spread evenly from left to right, and the error is integrated
    exactly: see `integral`. A bin without width is one float32 value, and float32 arithmetic
    applies as in `kernels.reference.ifmr.squared_errors`.

    Parameters
    ----------
    left, right : float64 array (B,)
    counts : int64 array (B,)
    lows, highs, scales : float64 array (R,)
        Where a candidate clips, and its step.
    """
    width = right - left
    point = width <= 0
    weight = counts / np.where(point, 1.0, width)
    losses = np.empty(scales.size)
    for r in range(scales.size):
        low, high, s = lows[r], highs[r], scales[r]
        area = integral(right, low, high, s) - integral(left, low, high, s)
        area = np.where(point, _point_error(left, low, high, s), area)
        losses[r] = np.sum(weight * area)
    return losses


def _point_error(x: np.ndarray, low: float, high: float, s: float) -> np.ndarray:
    value, step = x.astype(np.float32), np.float32(s)
    clipped = np.clip(value, np.float32(low), np.float32(high))
    return (round_half_away(clipped / step) * step - value).astype(np.float64) ** 2


def integral(t: np.ndarray, low: float, high: float, s: float) -> np.ndarray:
    """Return an antiderivative of the squared error ``(round(clip(t) / s) * s - t)**2``.

    Within [low, high], with m the step next to t and d its distance in steps, every whole
    step adds ``s**3 / 12`` and the begun one ``s**3 * d**3 / 3``. Outside, the error is the
    distance to the step next to the end.
    """
    inner = np.clip(t, low, high)
    m = round_half_away(inner / s)
    d = inner / s - m
    inside = s**3 * (m / 12 + d**3 / 3)
    edge = m * s
    return inside + ((t - edge) ** 3 - (inner - edge) ** 3) / 3


def divergences(
    centres: np.ndarray, counts: np.ndarray, lows: np.ndarray, scales: np.ndarray, levels: int
) -> np.ndarray:
    """Return KL(P || Q) of each candidate, float64 (R,); infinity where all is clipped.

    P clips what lies outside to the edge bins, Q spreads each level: a level's count (without
    what was clipped) lies evenly on its bins, as in the calibration of "8-bit Inference with
    TensorRT" (Migacz, 2017). Q is not scaled up to a sum of 1: else a range that holds one
    bin, and clips all others, would look perfect.

    Parameters
    ----------
    centres : float64 array (B,)
        Of the bins, ascending, one or more.
    counts : float64 array (B,)
        All above zero.
    lows, scales : float64 array (R,)
        Where the levels begin, and their distance.
    levels : int
    """
    losses = np.full(scales.size, np.inf)
    for r in range(scales.size):
        level = np.rint((centres - lows[r]) / scales[r])
        # up to half a step beyond an end a value is rounded to it, not clipped
        inside = (level >= 0) & (level < levels)
        if not inside.any():
            continue
        inside_counts = counts[inside]
        clipped = inside_counts.copy()
        clipped[0] += counts[level < 0].sum()
        clipped[-1] += counts[level >= levels].sum()
        level = level[inside].astype(np.int64)
        spread = (np.bincount(level, inside_counts) / np.maximum(np.bincount(level), 1))[level]
        losses[r] = np.sum(clipped * np.log(clipped / spread)) / counts.sum()
    return losses


def hfmg_ranges(counts: np.ndarray) -> np.ndarray:
    """Return the ranges of bins to try, first and last, int64 (R, 2).

    Each trims the end whose next hundred-thousandth of the counts reaches further in, until a
    quarter of the bins is left.

    Parameters
    ----------
    counts : int64 array (B,)
    """
    bins = counts.size
    step = max(1, -(-int(counts.sum()) // 100_000))
    before = np.concatenate([[0], np.cumsum(counts)])
    left, right = 0, bins - 1
    ranges = []
    while right - left > -(-bins // 4):
        # the first bin past `step` counts from the left, the last before them from the right
        next_left = int(np.searchsorted(before, before[left] + step))
        next_right = int(np.searchsorted(before, before[right + 1] - step, side="right")) - 2
        if next_left - left > right - next_right:
            left = next_left
        else:
            right = next_right
        if right < left:  # the counts at one end lay beyond those at the other
            break
        ranges.append((left, right))
    return np.array(ranges, np.int64).reshape(-1, 2)


def hfmg_errors(
    counts: np.ndarray, candidates: np.ndarray, width: float, levels: int
) -> np.ndarray:
    """Return the expected squared error of each range of bins, float64 (R,).

    The range is cut into `levels` parts. A source bin of even density from a to b adds
    ``density * (d_b**3 - d_a**3) / 3``, d being the distance from the centre of the part it
    falls in; a bin that spans parts adds for each.

    Parameters
    ----------
    counts : int64 array (B,)
    candidates : int64 array (R, 2)
        First and last bin of each range.
    width : float
        Of a bin.
    levels : int
    """
    losses = np.empty(len(candidates))
    for r, (left, right) in enumerate(candidates):
        part = width * (right - left + 1) / levels
        begin = (np.arange(counts.size) - left) * width
        end = begin + width
        first = np.clip(np.floor(begin / part), 0, levels - 1)
        last = np.clip(np.floor(end / part), 0, levels - 1)
        d_begin = begin - (first + 0.5) * part
        d_end = end - (last + 0.5) * part
        cubes = (d_end**3 - d_begin**3) / 3 + (last - first) * part**3 / 12
        losses[r] = np.sum(counts / width * cubes)
    return losses

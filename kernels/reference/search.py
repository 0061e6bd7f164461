"""The losses that searches compare, in NumPy: the definition."""

from __future__ import annotations

import numpy as np

from kernels.rounding import round_half_away

__all__ = ["bin_errors", "hfmg_errors", "squared_errors"]


def squared_errors(
    x: np.ndarray, lows: np.ndarray, highs: np.ndarray, scales: np.ndarray
) -> np.ndarray:
    """Return the summed squared error of each candidate on data, float64 (R,).

    ``sum((round(clip(x, low, high) / scale) * scale - x)**2)`` in float32, squared and summed in
    float64.

    Parameters
    ----------
    x : float32 array (n,)
    lows, highs, scales : float32 array (R,)
    """
    losses = np.empty(scales.size)
    for r in range(scales.size):
        d = round_half_away(np.clip(x, lows[r], highs[r]) / scales[r]) * scales[r] - x
        losses[r] = np.sum(np.square(d, dtype=np.float64))
    return losses


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
    applies as in `squared_errors`.

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

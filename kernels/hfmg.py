"""HFMG, the search for a range on an evenly binned histogram.

Both ends are trimmed by a hundred-thousandth of the counts at a time; a candidate's loss is
the squared error expected when 2**bits bins of equal width cover it and the counts lie
evenly in their bins. What lies outside is charged to the edge bins, on both sides alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kernels.checks import Array, as_array, check_bits, check_place
from kernels.dispatch import Device, backend
from kernels.histogram import Histogram
from kernels.params import QuantParams
from kernels.rounding import round_half_away

__all__ = ["HfmgResult", "hfmg_search", "rebinned"]

#: Below this a scale is taken as 1.0 here (float64's epsilon, not the 1.2e-7 of IFMR).
_MIN_SCALE = 2.220446049250313e-16


@dataclass(frozen=True)
class HfmgResult:
    """What was tried and what won.

    Attributes
    ----------
    params : QuantParams
    candidates : int64 array (R, 2)
        First and last bin of each range tried.
    losses : float64 array (R,)
    best_index : int
    """

    params: QuantParams
    candidates: np.ndarray
    losses: np.ndarray
    best_index: int


def hfmg_search(
    counts: Array,
    low: float,
    high: float,
    *,
    asymmetric: bool = True,
    bits: int = 8,
    device: Device | str = "cpu",
) -> HfmgResult:
    """Search the range on evenly spaced bins.

    Parameters
    ----------
    counts : int array (B,)
        Bins of equal width from `low` to `high`.
    low, high : float
        Real values, finite.
    asymmetric : bool
    bits : int
    device : str

    Returns
    -------
    HfmgResult

    Raises
    ------
    ValueError
        If there are no bins, the range is not finite or upside down, or the scale is out of
        range.
    """
    check_bits(bits)
    counts = as_array("counts", counts)
    check_place("counts", counts, device)
    counts = np.asarray(counts, np.int64)
    if not counts.size:
        raise ValueError("counts is empty: there is nothing to search a scale for")
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"range [{low}, {high}] is not finite or is upside down")
    width = (high - low) / counts.size
    code = backend(device, "search")
    candidates = code.hfmg_ranges(counts)
    if not width or not len(candidates):
        return HfmgResult(_params(low, high, asymmetric, bits), candidates, np.zeros(0), -1)
    losses = code.hfmg_errors(counts, candidates, width, 1 << bits)
    best = int(np.argmin(losses))
    left, right = candidates[best]
    clip = low + left * width, low + (right + 1) * width
    return HfmgResult(_params(*clip, asymmetric, bits), candidates, losses, best)


def _params(low: float, high: float, asymmetric: bool, bits: int) -> QuantParams:
    low, high = min(low, 0.0), max(high, 0.0)
    half = 1 << (bits - 1)
    if asymmetric:
        scale = (high - low) / (2 * half - 1)
    else:
        scale = high / (half - 1) if high > -low else -low / half
    if scale > 1 / _MIN_SCALE:
        raise ValueError(f"scale {scale} is out of range: the data holds huge values")
    scale = float(np.float32(scale)) if scale >= _MIN_SCALE else 1.0
    if not asymmetric:
        return QuantParams(scale, 0, bits)
    offset = -half - int(round_half_away(np.float32(low / scale)))
    return QuantParams(scale, min(max(offset, -half), half - 1), bits)


def rebinned(hist: Histogram, bins: int) -> np.ndarray:
    """Return the counts of a histogram in so many even bins over its range, int64 (bins,).

    A bin of the histogram that spans two counts for each by its share, rounded so that the
    total is kept.
    """
    edges = hist.edges()
    at = np.linspace(hist.low, hist.high, bins + 1)
    ends = np.concatenate([[0], np.cumsum(edges.counts)])
    places = np.column_stack([edges.left, edges.right]).ravel()
    reached = np.column_stack([ends[:-1], ends[1:]]).ravel()
    below = np.interp(at, places, reached) if places.size else np.zeros(bins + 1)
    below += hist.zeros * (at > 0)
    below[0], below[-1] = 0, hist.total
    return np.diff(np.rint(below)).astype(np.int64)

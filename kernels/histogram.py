"""A histogram of everything seen so far: one pass, constant memory, exact to merge.

Bins are ``2**exponent`` wide and lie on multiples of it, ``half`` of them on each side of
zero; bin i of a side holds the values with ``i <= |x| / 2**exponent < i + 1``. The exponent
is the least at which the largest magnitude fits. When it grows, bins join in pairs, which
is pure integer addition; so the state depends on the values alone, not on their order, on
how they were split in batches, or on which histograms were merged.

Beside the bins it keeps the extreme values themselves (`tail` of them at either end), which
makes percentiles near 0 and 1 exact, and counts exact zeros, which a quantizer never hurts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from kernels.checks import check_array, check_integer
from kernels.dispatch import backend

__all__ = ["BinEdges", "Histogram", "NotFiniteError"]

#: The narrowest bins: 2**126, by which values are multiplied then, is still a float32.
_LEAST = -126
_LOWEST = -float(np.finfo(np.float32).max)


class NotFiniteError(ValueError):
    """The data holds NaN or infinity.

    Attributes
    ----------
    nans, infinities : int
        How many of each.
    """

    def __init__(self, nans: int, infinities: int) -> None:
        self.nans, self.infinities = nans, infinities
        super().__init__(f"data holds {nans} NaN and {infinities} infinite values")


@dataclass(frozen=True)
class BinEdges:
    """The bins that hold something, cut to the range of the data, zeros left out.

    Attributes
    ----------
    left, right : float64 array (B,)
        Ends of each bin, ascending, ``left <= right``; equal where one value is all.
    counts : int64 array (B,)
    """

    left: np.ndarray
    right: np.ndarray
    counts: np.ndarray


class Histogram:
    """Accumulates float32 data of any size and range.

    Parameters
    ----------
    half : int
        Bins on each side of zero, a power of two; the largest magnitude always falls in
        the upper half of them, so the resolution is 1/half to 2/half of it.
    tail : int
        How many of the largest and of the smallest values to keep exactly.

    Attributes
    ----------
    counts : int64 array (2 * half,)
        Ascending in x: negative bins, then positive ones.
    exponent : int
        Bins are ``2.0 ** exponent`` wide.
    total, zeros : int
        Values seen, and how many were exactly zero.
    low, high : float
        Least and greatest value seen; NaN before any.
    smallest, largest : float32 array
        The extreme values, ascending from the least and descending from the greatest.
    """

    def __init__(self, half: int = 1 << 14, tail: int = 4096) -> None:
        self.half, self.tail = check_integer("half", half, 2), check_integer("tail", tail, 1)
        if self.half & (self.half - 1):
            raise ValueError(f"half must be a power of two, not {half}")
        self.counts = np.zeros(2 * half, np.int64)
        self.exponent = _LEAST
        self.total = 0
        self.zeros = 0
        self.low = self.high = math.nan
        self.smallest = self.largest = np.empty(0, np.float32)

    def update(self, x: np.ndarray, *, device: str = "cpu") -> None:
        """Count every value of an array.

        Parameters
        ----------
        x : float32 array, any shape; may be empty
        device : str

        Raises
        ------
        NotFiniteError
            If there is a NaN or an infinity; the histogram is then unchanged.
        """
        x = check_array("x", x, np.float32, None).reshape(-1)
        if not x.size:
            return
        code = backend(device, "histogram")
        low, high, nans, infinities = code.extremes(x)
        if nans or infinities:
            raise NotFiniteError(int(nans), int(infinities))
        self._grow(self._exponent_for(max(-float(low), float(high))))
        fresh, zeros = code.count(x, self.exponent, self.half)
        self.counts += fresh
        # a negative zero lies on the positive side as well: counts see the value alone
        self.largest = self._top(self.largest, x, float(high), fresh, 1, code)
        self.smallest = -self._top(-self.smallest, x, -float(low), fresh[::-1], -1, code)
        self.zeros += int(zeros)
        self._widen(float(low), float(high), x.size)

    def merge(self, other: Histogram) -> None:
        """Add what another histogram has seen; the order of merging makes no difference.

        Raises
        ------
        ValueError
            If `half` or `tail` differ.
        """
        if (self.half, self.tail) != (other.half, other.tail):
            raise ValueError(
                f"histograms of half={self.half}, tail={self.tail} and half={other.half}, "
                f"tail={other.tail} do not merge"
            )
        if not other.total:
            return
        self._grow(other.exponent)
        self.counts += _joined(other.counts, self.half, self.exponent - other.exponent)
        self.zeros += other.zeros
        self.largest = _greatest(self.largest, other.largest, self.tail)
        self.smallest = -_greatest(-self.smallest, -other.smallest, self.tail)
        self._widen(other.low, other.high, other.total)

    def edges(self) -> BinEdges:
        """Return the bins that hold something, for integrating a loss over them."""
        counts = self.counts.copy()
        counts[self.half] -= self.zeros
        used = np.flatnonzero(counts)
        width = math.ldexp(1.0, self.exponent)
        left = (used - self.half) * width
        return BinEdges(
            np.clip(left, self.low, self.high),
            np.clip(left + width, self.low, self.high),
            counts[used],
        )

    def largest_at(self, k: int) -> tuple[float, bool]:
        """Return the k-th largest value (k from 1) and whether it is exact.

        Beyond the kept tail the value is interpolated in its bin.

        Raises
        ------
        ValueError
            If fewer than k values were seen.
        """
        return self._kth(k, self.largest, 1)

    def smallest_at(self, k: int) -> tuple[float, bool]:
        """Return the k-th smallest value (k from 1) and whether it is exact; see above."""
        return self._kth(k, self.smallest, -1)

    def _kth(self, k: int, kept: np.ndarray, sign: int) -> tuple[float, bool]:
        if not 1 <= k <= self.total:
            raise ValueError(f"there is no value number {k} among {self.total}")
        if k <= kept.size:
            return float(kept[k - 1]), True
        counts = self.counts[::-sign]
        above = np.cumsum(counts)
        i = int(np.searchsorted(above, k))
        part = (k - (above[i] - counts[i])) / counts[i]
        value = sign * (self.half - i - part) * math.ldexp(1.0, self.exponent)
        return min(max(value, self.low), self.high), False

    def _exponent_for(self, magnitude: float) -> int:
        bits = self.half.bit_length() - 1
        return max(_LEAST, math.frexp(magnitude)[1] - bits) if magnitude else _LEAST

    def _grow(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _joined(self.counts, self.half, exponent - self.exponent)
            self.exponent = exponent

    def _widen(self, low: float, high: float, count: int) -> None:
        # adding 0.0 makes a negative zero positive, whichever came first
        self.low = (low if math.isnan(self.low) else min(self.low, low)) + 0.0
        self.high = (high if math.isnan(self.high) else max(self.high, high)) + 0.0
        self.total += count

    def _top(
        self,
        kept: np.ndarray,
        x: np.ndarray,
        high: float,
        fresh: np.ndarray,
        sign: int,
        code: ModuleType,
    ) -> np.ndarray:
        """Return the `tail` greatest of kept and ``sign * x``, descending."""
        threshold = _LOWEST
        if kept.size == self.tail:
            threshold = float(kept[-1])
            if high <= threshold:
                return kept
        # the batch's own bins say above which value lie enough of its values
        above = np.cumsum(fresh[::-1])
        if above[-1] > self.tail:
            i = int(np.searchsorted(above, self.tail))
            threshold = max(threshold, (self.half - 1 - i) * math.ldexp(1.0, self.exponent))
            # clipped data holds its greatest value again and again: no need to collect them all
            at_top = above[i] > 4 * self.tail and code.hits(x, np.float32(sign), np.float32(high))
            if at_top >= self.tail:
                return _greatest(kept, np.full(self.tail, high, np.float32), self.tail)
        found = code.collect(x, np.float32(sign), np.float32(threshold))
        return _greatest(kept, found, self.tail)


def _greatest(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` greatest values of both, descending."""
    both = np.concatenate([a, b]) + np.float32(0)
    if both.size > count:
        both = np.partition(both, both.size - count)[-count:]
    return np.sort(both)[::-1]


def _joined(counts: np.ndarray, half: int, steps: int) -> np.ndarray:
    """Return the counts with `steps` rounds of joining bins in pairs, outwards from zero."""
    if steps <= 0:
        return counts.copy()
    group = 1 << min(steps, half.bit_length() - 1)
    left = half // group
    out = np.zeros_like(counts)
    out[half : half + left] = counts[half:].reshape(-1, group).sum(axis=1)
    out[half - left : half] = counts[:half].reshape(-1, group).sum(axis=1)
    return out

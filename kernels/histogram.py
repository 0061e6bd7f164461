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
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from kernels.checks import Array, check_integer, check_kind, check_place
from kernels.dispatch import Device, backend
from kernels.locks import Guarded

if TYPE_CHECKING:
    from kernels.programs import Counter

__all__ = [
    "LEAST_EXPONENT",
    "BinEdges",
    "Histogram",
    "NotFiniteError",
    "Seen",
    "exponent_for",
    "greatest",
    "join",
]

#: The narrowest bins: 2**126, by which values are multiplied then, is still a float32.
LEAST_EXPONENT = -126


class NotFiniteError(ValueError):
    """The data holds NaN or infinity.

    Threads and other processes may be given it.

    Attributes
    ----------
    nans, infinities : int
        How many of each.
    """

    def __init__(self, nans: int, infinities: int) -> None:
        self.nans, self.infinities = nans, infinities
        super().__init__(f"data holds {nans} NaN and {infinities} infinite values")

    def __reduce__(self) -> tuple[type, tuple[int, int]]:
        """Let it come back from another process."""
        return type(self), (self.nans, self.infinities)


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


@dataclass(frozen=True)
class Seen:
    """What a backend found in one array, beside its counts.

    Attributes
    ----------
    low, high : float
        The extremes; any value if there is a NaN.
    nans, infinities, zeros : int
        How many of each.
    exponent : int
        Of the bins, now that the array has been counted.
    smallest, largest : float32 array
        The extreme values of all data so far, outermost first.
    """

    low: float
    high: float
    nans: int
    infinities: int
    zeros: int
    exponent: int
    smallest: np.ndarray
    largest: np.ndarray


class Histogram(Guarded):
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

    Notes
    -----
    Threads: may be shared; they count one after the other, and copies and pickles are of one
    moment. Attributes read while another thread counts need not belong together. A forked child
    goes on with a copy.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import Histogram
    >>> hist, other = Histogram(), Histogram()
    >>> hist.update(np.array([[0.0, 3.0], [-2.0, 1.0]], np.float32))
    >>> other.update(np.array([5.0, 0.0], np.float32))
    >>> hist.merge(other)  # other.merge(hist) has the same state
    >>> hist.total, hist.zeros, hist.low, hist.high
    (6, 2, -2.0, 5.0)
    >>> hist.largest_at(2)  # and it is exact
    (3.0, True)
    """

    def __init__(self, half: int = 1 << 14, tail: int = 4096) -> None:
        super().__init__()
        self.half, self.tail = check_integer("half", half, 2), check_integer("tail", tail, 1)
        if self.half & (self.half - 1):
            raise ValueError(f"half must be a power of two, not {half}")
        self.counts = np.zeros(2 * half, np.int64)
        self.exponent = LEAST_EXPONENT
        self.total = 0
        self.zeros = 0
        self.low = self.high = math.nan
        self.smallest = self.largest = np.empty(0, np.float32)

    def update(self, x: Array, *, device: Device | str = "cpu") -> None:
        """Count every value of an array.

        Parameters
        ----------
        x : float32 array, any shape; may be empty
            Where it is a part of a larger array, long lines are not copied. May lie on a CUDA
            device, if that is the one to count.
        device : str

        Raises
        ------
        NotFiniteError
            If there is a NaN or an infinity; the histogram is then unchanged.
        """
        x = check_kind("x", x, np.float32, None)
        check_place("x", x, device)
        size = math.prod(x.shape)
        if not size:
            return
        code = backend(device, "histogram")
        with self._lock:
            ends = self.smallest, self.largest
            seen = code.count(x, self.counts, self.exponent, ends, self.tail)
            self._note(seen, size)
            self.smallest, self.largest = seen.smallest, seen.largest

    def counter(self) -> Counter:
        """Return what the steps of a compiled net count in, for this histogram to `take`.

        See `kernels.programs`: only the device ``"cpu"`` has such steps.
        """
        with self._lock:
            full = self.smallest.size == self.tail
            beyond = (self.smallest[-1], self.largest[-1]) if full else (math.inf, -math.inf)
            size = self.half, self.tail, self.exponent
            made = backend("cpu", "programs").Counter(*size, *beyond)
            return cast("Counter", made)

    def take(self, counter: Counter) -> None:
        """Add what a counter of this histogram has counted, which begins anew.

        Raises
        ------
        NotFiniteError
            If there was a NaN or an infinity; the histogram is then unchanged.
        """
        with self._lock:
            size = counter.total
            seen = counter.settle(self.counts, self.exponent)
            if not (size or seen.nans or seen.infinities):
                return
            self._note(seen, size)
            self.largest = greatest(self.largest, seen.largest, self.tail)
            self.smallest = -greatest(-self.smallest, -seen.smallest, self.tail)

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
        other = copy(other)  # as it is now: never are both locked
        with self._lock:
            exponent, counts = max(self.exponent, other.exponent), other.counts
            join(self.counts, exponent - self.exponent)
            join(counts, exponent - other.exponent)
            self.counts += counts
            self.exponent = exponent
            self.zeros += other.zeros
            self.largest = greatest(self.largest, other.largest, self.tail)
            self.smallest = -greatest(-self.smallest, -other.smallest, self.tail)
            self._widen(other.low, other.high, other.total)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the whole state as arrays of its own, to be kept; see `from_arrays`."""
        now = copy(self)  # of one moment
        return {
            "sizes": np.array([now.half, now.tail, now.exponent, now.total, now.zeros]),
            "range": np.array([now.low, now.high]),
            "counts": now.counts,
            "smallest": now.smallest,
            "largest": now.largest,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], tail: int | None = None) -> Histogram:
        """Return the histogram whose state `to_arrays` gave.

        Parameters
        ----------
        arrays : mapping of str to ndarray
        tail : int, optional
            How many extreme values it keeps, no more than before: its state is then as if it had
            never kept more. By default as many.

        Raises
        ------
        ValueError
            If the arrays are no state of a histogram, or `tail` is more than was kept.
        """
        half, before, exponent, total, zeros = (int(n) for n in arrays["sizes"])
        tail = before if tail is None else tail
        if tail > before:
            raise ValueError(f"the histogram kept {before} extreme values, not {tail}")
        hist = cls(half, tail)
        counts = np.array(arrays["counts"], np.int64)
        if counts.shape != hist.counts.shape or counts.sum() != total:
            raise ValueError(f"the arrays are no histogram of {total} values in 2 * {half} bins")
        hist.counts, hist.exponent, hist.total, hist.zeros = counts, exponent, total, zeros
        hist.low, hist.high = (float(x) for x in arrays["range"])
        hist.smallest = np.array(arrays["smallest"][:tail], np.float32)
        hist.largest = np.array(arrays["largest"][:tail], np.float32)
        return hist

    def edges(self) -> BinEdges:
        """Return the bins that hold something, for integrating a loss over them."""
        with self._lock:
            counts, zeros, exponent = self.counts.copy(), self.zeros, self.exponent
            low, high = self.low, self.high
        counts[self.half] -= zeros
        used = np.flatnonzero(counts != 0)  # of booleans it is many times faster
        width = math.ldexp(1.0, exponent)
        left = (used - self.half) * width
        return BinEdges(np.clip(left, low, high), np.clip(left + width, low, high), counts[used])

    def largest_at(self, k: int) -> tuple[float, bool]:
        """Return the k-th largest value (k from 1) and whether it is exact.

        Beyond the kept tail the value is interpolated in its bin.

        Raises
        ------
        ValueError
            If fewer than k values were seen.
        """
        with self._lock:
            return self._kth(k, self.largest, 1)

    def smallest_at(self, k: int) -> tuple[float, bool]:
        """Return the k-th smallest value (k from 1) and whether it is exact; see above."""
        with self._lock:
            return self._kth(k, self.smallest, -1)

    def _kth(self, k: int, tail_values: np.ndarray, sign: int) -> tuple[float, bool]:
        if not 1 <= k <= self.total:
            raise ValueError(f"there is no value number {k} among {self.total}")
        if k <= tail_values.size:
            return float(tail_values[k - 1]), True
        counts = self.counts[::-sign]
        above = np.cumsum(counts)
        i = int(np.searchsorted(above, k))
        part = (k - (above[i] - counts[i])) / counts[i]
        value = sign * (self.half - i - part) * math.ldexp(1.0, self.exponent)
        return min(max(value, self.low), self.high), False

    def _note(self, seen: Seen, size: int) -> None:
        """Note what was seen in so many values that have been counted, but their extremes."""
        if seen.nans or seen.infinities:
            raise NotFiniteError(seen.nans, seen.infinities)
        self.exponent = seen.exponent
        self.zeros += seen.zeros
        self._widen(seen.low, seen.high, size)

    def _widen(self, low: float, high: float, count: int) -> None:
        # adding 0.0 makes a negative zero positive, whichever came first
        self.low = (low if math.isnan(self.low) else min(self.low, low)) + 0.0
        self.high = (high if math.isnan(self.high) else max(self.high, high)) + 0.0
        self.total += count


def exponent_for(magnitude: float, half: int) -> int:
    """Return the least exponent of the bins at which `half` of them hold a magnitude."""
    bits = half.bit_length() - 1
    return max(LEAST_EXPONENT, math.frexp(magnitude)[1] - bits) if magnitude else LEAST_EXPONENT


def greatest(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` greatest values of both, descending; a negative zero turns positive."""
    both = np.concatenate([a, b]) + np.float32(0)
    if both.size > 2 * count:
        both = np.partition(both, both.size - count)[-count:]
    return np.sort(both)[::-1][:count]


def join(counts: np.ndarray, steps: int) -> None:
    """Join bins in pairs, `steps` times, outwards from zero and in place.

    Parameters
    ----------
    counts : int64 array (2 * half,)
    steps : int
        None are joined if it is not positive.
    """
    if steps <= 0 or not counts.any():
        return
    half = counts.size // 2
    below, above = counts[:half].copy(), counts[half:].copy()
    for _ in range(min(steps, half.bit_length() - 1)):
        below, above = below[::2] + below[1::2], above[::2] + above[1::2]
    counts[:] = 0
    counts[half : half + above.size] = above
    counts[half - below.size : half] = below

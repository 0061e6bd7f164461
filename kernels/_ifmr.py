"""IFMR, the search for activation scales: candidates, and the loss of each.

The maximum and minimum are percentiles of the data, widened to hold zero. Factors
``r_i = start + i * step`` stretch the maximum; candidate i quantizes ``clip(x, min, r_i*max)``
with ``s_i = (r_i*max - min) / (2**bits - 1)`` and the first least mean squared error wins.
The symmetric form stretches the dominant end and clips at it on both sides. All of it is
float32 arithmetic, as in the tool whose results it reproduces; losses are summed in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kernels.affine import guard_scales
from kernels.checks import Array, as_array, check_array, check_bits, is_device_array
from kernels.dispatch import Device, backend
from kernels.histogram import Histogram
from kernels.locks import Guarded
from kernels.methods import Ifmr, Percentile
from kernels.params import QuantParams
from kernels.rounding import round_half_away

__all__ = [
    "IfmrCandidates",
    "IfmrPass",
    "ifmr",
    "ifmr_candidates",
    "percentile_range",
    "tail_rank",
]


def tail_rank(total: int, percentile: float) -> int:
    """Return k such that the k-th largest of `total` values is the percentile: from 1.

    ``k = total - floor(percentile * total)`` with the product in float32.

    Parameters
    ----------
    total : int
    percentile : float
        In (0.5, 1].

    Examples
    --------
    >>> from kernels import tail_rank
    >>> tail_rank(1000, 0.75)
    250
    >>> tail_rank(1000, 1.0)
    1
    """
    floor = int(np.floor(np.float32(percentile) * np.float32(total)))
    return min(max(total - floor, 1), total)


@dataclass(frozen=True)
class IfmrCandidates:
    """What IFMR chooses from.

    Never changes: threads and forked processes may share it.

    Attributes
    ----------
    lows, highs, scales : float32 array (R,)
        Where each candidate clips, and its step.
    asymmetric : bool
    bits : int
    """

    lows: np.ndarray
    highs: np.ndarray
    scales: np.ndarray
    asymmetric: bool
    bits: int

    def best(self, losses: Array) -> QuantParams:
        """Return the parameters of the first candidate of least loss.

        Raises
        ------
        ValueError
            If a loss is NaN or infinite, as NaN or infinity in the data make it.
        """
        losses = np.asarray(as_array("losses", losses))
        if not np.isfinite(losses).all():
            raise ValueError("the losses are not finite: the data held NaN or infinity")
        i = int(np.argmin(losses))
        scale = self.scales[i]
        if not self.asymmetric:
            return QuantParams(float(scale), 0, self.bits)
        half = 1 << (self.bits - 1)
        offset = -int(round_half_away(self.lows[i] / scale)) - half
        return QuantParams(float(scale), min(max(offset, -half), half - 1), self.bits)


def ifmr_candidates(low: float, high: float, settings: Ifmr, bits: int = 8) -> IfmrCandidates:
    """Return the candidates for data between two percentiles.

    Parameters
    ----------
    low, high : float
        The minimum and maximum by percentile.
    settings : Ifmr
    bits : int

    Raises
    ------
    ValueError
        If a scale would be infinite or out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import Ifmr, ifmr_candidates
    >>> candidates = ifmr_candidates(0.0, 255.0, Ifmr((0.5, 1.5), 0.5))
    >>> candidates.scales
    array([0.5, 1. , 1.5], dtype=float32)
    >>> candidates.best(np.array([3.0, 1.0, 2.0]))  # losses
    QuantParams(scale=1.0, offset=-128, bits=8)
    """
    check_bits(bits)
    start, end = (np.float32(r) for r in settings.search_range)
    step = np.float32(settings.search_step)
    count = int((end - start) / step + np.float32(1))
    ratios = start + np.arange(count, dtype=np.float32) * step
    with np.errstate(over="ignore"):
        lo, hi = np.float32(min(low, 0.0)), np.float32(max(high, 0.0))
    steps = (1 << bits) - 1
    with np.errstate(over="ignore"):
        if settings.asymmetric:
            highs = ratios * hi
            lows = np.full(count, lo)
            scales = (highs - lo) / np.float32(steps)
        else:
            limit = steps // 2 if hi > -lo else steps // 2 + 1
            highs = ratios * max(hi, -lo)
            lows = -highs
            scales = highs / np.float32(limit)
    return IfmrCandidates(lows, highs, guard_scales(scales), settings.asymmetric, bits)


class IfmrPass(Guarded):
    """A second pass over the data that equals IFMR on all of it, in constant memory.

    Parameters
    ----------
    candidates : IfmrCandidates
        From the percentiles that a first pass found.

    Attributes
    ----------
    losses : float64 array (R,)
        Sum of squared errors so far; sums of two passes over parts of the data add up.
    total : int
        Values seen.

    Notes
    -----
    Threads: may be shared; the order in which their losses are added rounds the last bits. A
    forked child goes on with a copy.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import Ifmr, IfmrPass, ifmr_candidates
    >>> second = IfmrPass(ifmr_candidates(0.0, 255.0, Ifmr((0.5, 1.5), 0.5)))
    >>> for batch in np.arange(256, dtype=np.float32).reshape(4, 64):
    ...     second.update(batch)
    >>> int(second.losses.argmin()), second.params()
    (1, QuantParams(scale=1.0, offset=-128, bits=8))
    """

    def __init__(self, candidates: IfmrCandidates) -> None:
        super().__init__()
        self.candidates = candidates
        self.losses = np.zeros(candidates.scales.size)
        self.total = 0

    def update(self, x: Array, *, device: Device | str = "cpu") -> None:
        """Add the squared errors of a float32 array under every candidate.

        The array may lie on a CUDA device, if that is the one to compute. NaN and infinity are
        found by `params`: they leave a loss that is not finite.
        """
        x, c = _flat(x, device), self.candidates
        losses = backend(device, "ifmr").squared_errors(x, c.lows, c.highs, c.scales)
        with self._lock:
            self.losses = self.losses + losses
            self.total += math.prod(x.shape)

    def params(self) -> QuantParams:
        """Return the parameters of the best candidate.

        Raises
        ------
        ValueError
            If there was no data, or it held NaN or infinity.
        """
        if not self.total:
            raise ValueError("no data was given: there is nothing to choose a scale by")
        return self.candidates.best(self.losses)


def ifmr(
    x: Array,
    search_range: tuple[float, float] = (0.7, 1.3),
    search_step: float = 0.01,
    max_percentile: float = 0.999999,
    min_percentile: float = 0.999999,
    asymmetric: bool = True,
    *,
    bits: int = 8,
    device: Device | str = "cpu",
) -> QuantParams:
    """Search scale and offset for an array in memory, as the original does.

    Parameters
    ----------
    x : float32 array, any shape, not empty
        May lie on a CUDA device, if that is the one to search.
    search_range, search_step, max_percentile, min_percentile, asymmetric
        See `kernels.Ifmr`.
    bits : int
        2..8.
    device : str

    Returns
    -------
    QuantParams

    Raises
    ------
    NotFiniteError
        If `x` holds NaN or infinity.
    ValueError
        If `x` is empty, a setting is out of range, or the data is too large to scale.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import ifmr
    >>> x = np.arange(256, dtype=np.float32)
    >>> ifmr(x, (0.5, 1.5), 0.25)
    QuantParams(scale=1.0, offset=-128, bits=8)
    """
    x = _flat(x, device)
    size = math.prod(x.shape)
    if not size:
        raise ValueError("x is empty: there is nothing to search a scale for")
    settings = Ifmr(search_range, search_step, max_percentile, min_percentile, asymmetric)
    first = Histogram(tail=_tail_for(size, settings))
    first.update(x, device=device)
    second = IfmrPass(ifmr_candidates(*percentile_range(first, settings), settings, bits))
    second.update(x, device=device)
    return second.params()


def _flat(x: Array, device: str) -> np.ndarray:
    """Return clean data as one axis, device arrays as they are: their backend lays them flat."""
    x = check_array("x", x, np.float32, None, device)
    return x if is_device_array(x) else x.reshape(-1)


def _tail_for(total: int, settings: Ifmr) -> int:
    """Return how long a tail makes both percentiles of so many values exact."""
    ranks = (tail_rank(total, p) for p in (settings.max_percentile, settings.min_percentile))
    return max(ranks)


def percentile_range(hist: Histogram, settings: Ifmr | Percentile) -> tuple[float, float]:
    """Return (minimum, maximum) of a histogram by the percentiles of the settings.

    Parameters
    ----------
    hist : Histogram
        Not empty.
    settings : Ifmr or Percentile

    Raises
    ------
    ValueError
        If the histogram is empty.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import Histogram, Percentile, percentile_range
    >>> hist = Histogram()
    >>> hist.update(np.arange(-50, 50, dtype=np.float32))
    >>> percentile_range(hist, Percentile(max_percentile=0.75, min_percentile=1.0))
    (-50.0, 25.0)
    """
    low, _ = hist.smallest_at(tail_rank(hist.total, settings.min_percentile))
    high, _ = hist.largest_at(tail_rank(hist.total, settings.max_percentile))
    return low, high

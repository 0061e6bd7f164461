"""SearchN: the shift N by which an accelerator takes int32 sums to 16 bits with the least error.

For N in 1..16 a sum s becomes ``clip_s16(floor(s / 2**N)) * 2**N``; the N whose squared errors are
least is taken, the lowest of equals. An error is below 2**31, its square below 2**62: squares are
summed in halves of 32 bits, as integers, so that the result is exact and does not depend on the
order or on who has summed what, for up to 2**31 values of a channel.
"""

from __future__ import annotations

import math
from copy import copy

import numpy as np

from kernels.checks import Array, check_array, check_integer
from kernels.dispatch import Device, backend, check_device
from kernels.locks import Guarded
from kernels.rounding import round_half_away

__all__ = ["SHIFTS", "ShiftSearch"]

#: What is tried.
SHIFTS = range(1, 17)
_MOST_VALUES = 1 << 31


class ShiftSearch(Guarded):
    """Searches N for each channel of a layer's sums, over batches.

    Parameters
    ----------
    channels : int
    truncate : bool
        Round towards zero, as an older search does, not down.

    Notes
    -----
    Threads: may be shared. A forked child goes on with a copy.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import ShiftSearch
    >>> search = ShiftSearch(2)
    >>> search.update(np.array([[[100, -100], [200_000, -70_000]]], np.int32))
    >>> search.best()  # 200,000 / 2**3 is below 2**15
    array([1, 3], dtype=uint8)
    >>> search.best(common=True)
    array([3, 3], dtype=uint8)
    """

    def __init__(self, channels: int, *, truncate: bool = False) -> None:
        super().__init__()
        check_integer("channels", channels, 1, 1 << 31)
        self._halves = np.zeros((2, channels, len(SHIFTS)), np.int64)  # low and high 32 bits
        self._count = 0
        self._truncate = bool(truncate)

    def update(
        self, sums: Array, scale: Array | None = None, *, device: Device | str = "cpu"
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        sums : int32 array (N, C, ...), or float32 with `scale`
            It may lie on a CUDA device, if that is the one to compute.
        scale : float32 array (C,), optional
            Real value of one unit of the sums: then `sums` are real values, and what is searched
            on is ``round(x / scale)``, halves away from zero.
        device : str

        Raises
        ------
        TypeError, ValueError
            If dtypes or shapes are wrong, a value is not finite, or beyond int32.
        OverflowError
            If a channel has had more than 2**31 values.
        """
        check_device(device)
        if scale is not None:
            sums = _rounded(sums, scale)
        sums = check_array("sums", sums, np.int32, None, device)
        channels = self._halves.shape[1]
        if len(sums.shape) < 2 or sums.shape[1] != channels:
            raise ValueError(f"sums must be (N, {channels}, ...), not {tuple(sums.shape)}")
        if not sums.size:
            return
        shape = (*sums.shape[:2], math.prod(sums.shape[2:]))
        code = backend(device, "search_n")
        self._add(sums.size // channels, code.shift_errors(sums.reshape(shape), self._truncate))

    def merge(self, other: ShiftSearch) -> None:
        """Add what another search of as many channels has seen.

        Raises
        ------
        ValueError
            If its channels or its rounding are others.
        """
        if other._halves.shape != self._halves.shape or other._truncate != self._truncate:
            raise ValueError("the searches are of different channels or roundings")
        other = copy(other)  # as it is now: never are both locked
        self._add(other._count, other._halves)

    def _add(self, count: int, halves: np.ndarray) -> None:
        with self._lock:
            if self._count + count > _MOST_VALUES:
                raise OverflowError(f"more than {_MOST_VALUES} values of a channel")
            self._count += count
            self._halves = self._halves + halves

    @property
    def errors(self) -> np.ndarray:
        """Sums of squared errors, float64 (C, 16), of N = 1..16: exact but for one rounding."""
        low, high = self._halves.astype(np.float64)
        return high * 2.0**32 + low

    def best(self, *, common: bool = False) -> np.ndarray:
        """Return the N of least error for each channel, uint8 (C,); lowest first among equals.

        Parameters
        ----------
        common : bool
            One for all channels: the one of the least sum.
        """
        low, high = (h.astype(object) for h in self._halves)
        exact = high * (1 << 32) + low  # Python's integers
        if common:
            exact = np.broadcast_to(exact.sum(axis=0), exact.shape)
        best = [min(range(len(row)), key=row.__getitem__) + 1 for row in exact.tolist()]
        return np.array(best, np.uint8)


def _rounded(x: Array, scale: Array) -> np.ndarray:
    """Return real values in units of a channel's scale, int32."""
    x = check_array("sums", x, np.float32, None, "cpu")
    scale = check_array("scale", scale, np.float32, 1, "cpu")
    if x.ndim < 2 or scale.shape != (x.shape[1],) or not (scale > 0).all():
        raise ValueError(f"scale must be ({x.shape[1:2]}) positive numbers, not {scale.shape}")
    if not np.isfinite(x).all():
        raise ValueError("sums hold NaN or infinity")
    steps = round_half_away(x / scale.reshape(-1, *(1,) * (x.ndim - 2)))
    inside = (steps >= -(2.0**31)) & (steps < 2.0**31)
    if not inside.all():
        raise ValueError("sums hold values beyond int32 in units of their scale")
    return steps.astype(np.int32)

"""First and second moments of two streams of values, for each channel.

They are what a line ``x ≈ gain * y + shift`` by least squares needs, and what is left of the
difference behind it: bias and gain correction of quantized layers rest on nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kernels.checks import Array, as_array, check_array
from kernels.dispatch import Device, backend, check_device

__all__ = ["ChannelMoments", "channel_moments"]


def _quiet() -> np.errstate:
    """Let infinite values make NaN of a channel's moments, which is what they are."""
    return np.errstate(invalid="ignore", over="ignore")


@dataclass(frozen=True)
class ChannelMoments:
    """Sums over samples and positions of x (exact values) and y (what stands for them).

    Never changes: threads and forked processes may share it.

    Attributes
    ----------
    count : int
        Values of each channel.
    x, y, xx, yy, xy : float64 array (C,)
        Sums of x, y, x², y² and x·y.
    """

    count: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray

    def __add__(self, other: ChannelMoments) -> ChannelMoments:
        """Return the moments of both streams, one after the other."""
        with _quiet():
            return ChannelMoments(
                self.count + other.count,
                self.x + other.x,
                self.y + other.y,
                self.xx + other.xx,
                self.yy + other.yy,
                self.xy + other.xy,
            )

    def gain(self, low: float, high: float, *, common: bool = False) -> np.ndarray:
        """Return ``Σ x'y' / Σ y'y'`` of the centred values, float64 (C,), within limits.

        A channel in which y does not vary has gain 1.

        Parameters
        ----------
        low, high : float
        common : bool
            One gain for all channels, (1,).
        """
        with _quiet():
            yy = self.yy - self.y * self.y / self.count
            xy = self.xy - self.x * self.y / self.count
            # what is left of constant values is rounding
            varies = yy > 1e-12 * self.yy
            if common:
                yy, xy = (np.where(varies, v, 0).sum(keepdims=True) for v in (yy, xy))
                varies = yy > 0
            return np.where(varies, np.clip(xy / np.where(varies, yy, 1), low, high), 1.0)

    def shift(self, gain: Array | float = 1.0) -> np.ndarray:
        """Return the mean of ``x - gain * y``, float64 (C,)."""
        gain = np.asarray(as_array("gain", gain))
        with _quiet():
            return (self.x - gain * self.y) / self.count

    def noise(self, gain: Array | float = 1.0, shift: Array | float = 0.0) -> np.ndarray:
        """Return the mean of ``(x - gain * y - shift)²``, float64 (C,)."""
        gain, shift = np.asarray(as_array("gain", gain)), np.asarray(as_array("shift", shift))
        with _quiet():
            total = (
                self.xx
                + gain * gain * self.yy
                + self.count * shift * shift
                - 2 * gain * self.xy
                - 2 * shift * (self.x - gain * self.y)
            )
            return np.maximum(total, 0) / self.count


def channel_moments(x: Array, y: Array, *, device: Device | str = "cpu") -> ChannelMoments:
    """Return the moments of two arrays, channel by channel.

    Sums are float64, on each device in one order whatever the number of threads; devices differ
    by rounding.

    Parameters
    ----------
    x, y : float32 array (N, C, ...)
        Exact values, and what stands for them; they may lie on a CUDA device, if that is the one
        to compute.
    device : str

    Returns
    -------
    ChannelMoments

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes are wrong, or there are no values.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import channel_moments
    >>> x = np.array([[1], [2], [3]], np.float32)
    >>> moments = channel_moments(x, x / 2 - 1)
    >>> gain = moments.gain(0.5, 4)
    >>> gain, moments.shift(gain), moments.noise(gain, moments.shift(gain))
    (array([2.]), array([2.]), array([0.]))
    """
    check_device(device)
    x = check_array("x", x, np.float32, None, device)
    y = check_array("y", y, np.float32, None, device)
    if tuple(x.shape) != tuple(y.shape) or len(x.shape) < 2:
        raise ValueError(f"x and y must be alike, (N, C, ...), not {x.shape} and {y.shape}")
    if not x.size:
        raise ValueError("x is empty: there is nothing to compare")
    shape = (*x.shape[:2], math.prod(x.shape[2:]))
    sums = backend(device, "moments").channel_sums(x.reshape(shape), y.reshape(shape))
    return ChannelMoments(x.size // x.shape[1], *sums)

"""The number format: ``q = clip(round(x / scale) + offset)``, ``x ~ (q - offset) * scale``.

Division by the scale, not multiplication by its reciprocal: they round differently.
Rounding is half away from zero. Widths of 2..8 bits are held in int8.

`quantize`, `dequantize`, `fake_quantize` and `requantize` take arrays of a CUDA device as well,
if that is the device; their results then lie there too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kernels.checks import check_array, check_bits, check_integer
from kernels.dispatch import backend
from kernels.rounding import round_half_away

__all__ = [
    "MAX_SCALE",
    "MIN_SCALE",
    "QuantParams",
    "dequantize",
    "dequantize_weights",
    "fake_quantize",
    "fake_quantize_weights",
    "guard_scale",
    "guard_scales",
    "params_from_range",
    "quantize",
    "quantize_weights",
    "requantize",
]

#: Weights rounded at a time, as that takes four times their memory.
_PART = 1 << 20
#: Scales below this are taken as 1.0: the data is all (but) zero.
MIN_SCALE = 1.1920929e-7
#: Scales above this are an error: their reciprocal falls below `MIN_SCALE`.
MAX_SCALE = 1.0 / MIN_SCALE


@dataclass(frozen=True)
class QuantParams:
    """Scale and offset of one tensor.

    Attributes
    ----------
    scale : float
        Real value of one step; a float32 value in (0, inf).
    offset : int
        The integer that stands for zero (zero point), within the bit range.
    bits : int
        Width, 2..8; the range is [-2**(bits-1), 2**(bits-1) - 1].

    Raises
    ------
    TypeError
        If offset or bits is no integer.
    ValueError
        If the scale is not a positive finite float32 or the offset leaves the range.

    Examples
    --------
    >>> from kernels import QuantParams
    >>> params = QuantParams(0.5, -28)
    >>> params.low, params.high
    (-128, 127)
    >>> params.range
    (-50.0, 77.5)
    """

    scale: float
    offset: int = 0
    bits: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", check_bits(self.bits))
        with np.errstate(over="ignore"):
            scale = float(np.float32(self.scale))
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be a positive finite float32, not {self.scale}")
        object.__setattr__(self, "scale", scale)
        offset = check_integer("offset", self.offset, self.low, self.high)
        object.__setattr__(self, "offset", offset)

    @property
    def low(self) -> int:
        """Smallest integer of the format."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest integer of the format."""
        return (1 << (self.bits - 1)) - 1

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest real value that the format holds."""
        return (self.low - self.offset) * self.scale, (self.high - self.offset) * self.scale


def guard_scale(scale: np.float32) -> np.float32:
    """Return the scale, or 1 where it is too small to divide by.

    Raises
    ------
    ValueError
        If it is NaN, infinite, or so large that its reciprocal is below `MIN_SCALE`.
    """
    if not np.isfinite(scale) or scale > np.float32(MAX_SCALE):
        raise ValueError(
            f"scale {scale} is out of range: the data holds huge, infinite or NaN values"
        )
    return np.float32(1.0) if scale < np.float32(MIN_SCALE) else scale


def guard_scales(scales: np.ndarray) -> np.ndarray:
    """Return float32 scales (R,) as `guard_scale` returns each.

    Raises
    ------
    ValueError
        If one of them is out of range.
    """
    guard_scale(scales.max())  # of a NaN as well: it is the maximum then
    return np.where(scales < np.float32(MIN_SCALE), np.float32(1.0), scales)


def params_from_range(
    low: float, high: float, *, asymmetric: bool = True, bits: int = 8
) -> QuantParams:
    """Return scale and offset that cover [low, high], widened so that zero is exact.

    Parameters
    ----------
    low, high : float
        Range of the data in real values; float32 arithmetic throughout.
    asymmetric : bool
        True: ``scale = (high - low) / (2**bits - 1)`` and an offset. False: offset 0 and
        the dominant end at 2**(bits-1) - 1 if positive, else at -2**(bits-1) (also on a tie).
    bits : int

    Raises
    ------
    ValueError
        If an end is NaN or infinite, or the scale is out of range.

    Examples
    --------
    >>> from kernels import params_from_range
    >>> params_from_range(10.0, 63.75)  # as if from 0
    QuantParams(scale=0.25, offset=-128, bits=8)
    >>> params_from_range(-64.0, 10.0, asymmetric=False)
    QuantParams(scale=0.5, offset=0, bits=8)
    """
    check_bits(bits)
    with np.errstate(over="ignore"):
        lo, hi = np.float32(min(low, 0.0)), np.float32(max(high, 0.0))
    if not (np.isfinite(lo) and np.isfinite(hi) and low <= high):
        raise ValueError(f"range [{low}, {high}] is not finite or is upside down")
    half = 1 << (bits - 1)
    if not asymmetric:
        limit = half - 1 if hi > -lo else half
        return QuantParams(float(guard_scale(max(hi, -lo) / np.float32(limit))), 0, bits)
    with np.errstate(over="ignore"):
        scale = guard_scale((hi - lo) / np.float32(2 * half - 1))
    offset = -int(round_half_away(lo / scale)) - half
    return QuantParams(float(scale), min(max(offset, -half), half - 1), bits)


def quantize(x: np.ndarray, params: QuantParams, *, device: str = "cpu") -> np.ndarray:
    """Quantize to int8: ``clip(round(x / scale) + offset)``.

    Parameters
    ----------
    x : float32 array, any shape
        Infinities saturate.
    params : QuantParams
    device : str

    Returns
    -------
    int8 array, shape of `x`

    Raises
    ------
    TypeError
        If `x` lies on a CUDA device that is not to compute.
    ValueError
        If `x` holds a NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import QuantParams, quantize
    >>> x = np.array([-1.0, 0.0, 0.25, 0.6, 100.0], np.float32)
    >>> quantize(x, QuantParams(0.5, 10))  # half a step rounds away from zero, 100 saturates
    array([  8,  10,  11,  11, 127], dtype=int8)
    """
    return backend(device, "affine").quantize(check_array("x", x, np.float32, None, device), params)


def dequantize(q: np.ndarray, params: QuantParams, *, device: str = "cpu") -> np.ndarray:
    """Return ``(q - offset) * scale`` as float32.

    Parameters
    ----------
    q : int8 array, any shape
    params : QuantParams
    device : str

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import QuantParams, dequantize
    >>> dequantize(np.array([8, 10, 127], np.int8), QuantParams(0.5, 10))
    array([-1. ,  0. , 58.5], dtype=float32)
    """
    return backend(device, "affine").dequantize(check_array("q", q, np.int8, None, device), params)


def fake_quantize(x: np.ndarray, params: QuantParams, *, device: str = "cpu") -> np.ndarray:
    """Return ``dequantize(quantize(x))`` in one pass, float32.

    Parameters
    ----------
    x : float32 array, any shape
    params : QuantParams
    device : str

    Raises
    ------
    TypeError
        If `x` lies on a CUDA device that is not to compute.
    ValueError
        If `x` holds a NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import QuantParams, fake_quantize
    >>> fake_quantize(np.array([-1.0, 0.6, 100.0], np.float32), QuantParams(0.5, 10))
    array([-1. ,  0.5, 58.5], dtype=float32)
    """
    x = check_array("x", x, np.float32, None, device)
    return backend(device, "affine").fake_quantize(x, params)


def requantize(
    acc: np.ndarray, scale: np.ndarray | float, params: QuantParams, *, device: str = "cpu"
) -> np.ndarray:
    """Turn int32 sums into int8: ``quantize(float32(acc) * scale, params)``.

    Parameters
    ----------
    acc : int32 array (N, C, ...)
    scale : float32 array (C,) or float
        Real value of one unit of `acc`, e.g. scale_x * scale_w[c].
    params : QuantParams
        Of the result.
    device : str

    Returns
    -------
    int8 array, shape of `acc`

    Raises
    ------
    ValueError
        If there are neither 1 nor C scales, or one is not positive and finite.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import QuantParams, requantize
    >>> sums = np.array([[100, -7], [3, 40]], np.int32)
    >>> requantize(sums, np.array([0.5, 2.0], np.float32), QuantParams(1.0, 5))
    array([[55, -9],
           [ 7, 85]], dtype=int8)
    """
    acc = check_array("acc", acc, np.int32, None, device)
    scales = _scales("scale", scale)
    if scales.size != 1 and (acc.ndim < 2 or scales.size != acc.shape[1]):
        raise ValueError(f"{scales.size} scales do not fit sums of shape {acc.shape}")
    return backend(device, "affine").requantize(acc, scales, params)


def _scales(name: str, values: np.ndarray | float) -> np.ndarray:
    """Return scales as a float32 array of one axis, having checked that they can be used."""
    with np.errstate(over="ignore"):
        scales = np.atleast_1d(np.asarray(values, dtype=np.float32))
    if scales.ndim != 1 or not (np.isfinite(scales).all() and (scales > 0).all()):
        raise ValueError(f"{name} must be positive and finite, one value or one a channel")
    return scales


def _channels(w: np.ndarray, scales: np.ndarray, channel_axis: int) -> np.ndarray:
    """Return the scales shaped to multiply `w`."""
    scales = _scales("scales", scales)
    shape = [1] * w.ndim
    if scales.size != 1:
        if not -w.ndim <= channel_axis < w.ndim or w.shape[channel_axis] != scales.size:
            raise ValueError(f"{scales.size} scales do not fit axis {channel_axis} of {w.shape}")
        shape[channel_axis] = -1
    return scales.reshape(shape)


def quantize_weights(
    w: np.ndarray, scales: np.ndarray, *, channel_axis: int = 0, bits: int = 8
) -> np.ndarray:
    """Quantize weights symmetrically (offset 0), one scale for each channel or one for all.

    Parameters
    ----------
    w : float32 array
        Infinities saturate.
    scales : float32 array (C,) or (1,)
        From `kernels.arq`.
    channel_axis : int
    bits : int

    Returns
    -------
    int8 array, shape of `w`

    Raises
    ------
    ValueError
        If the scales do not fit or are not positive and finite, or `w` holds a NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import quantize_weights
    >>> w = np.array([[127.0, -63.6], [-32.0, 16.0]], np.float32)
    >>> quantize_weights(w, np.array([1.0, 0.25], np.float32))
    array([[ 127,  -64],
           [-128,   64]], dtype=int8)
    """
    w = check_array("w", w, np.float32, None, "cpu")
    half = 1 << (check_bits(bits) - 1)
    factors = np.broadcast_to(_channels(w, scales, channel_axis), w.shape)
    out = np.empty(w.shape, np.int8)
    pairs = np.atleast_1d(w), np.atleast_1d(factors), np.atleast_1d(out)
    count = max(1, _PART // max(pairs[0][:1].size, 1))
    for i in range(0, len(pairs[0]), count):
        part, factor, q = (x[i : i + count] for x in pairs)
        if np.isnan(part).any():
            raise ValueError("w holds NaN")
        with np.errstate(over="ignore", invalid="ignore"):
            q[...] = np.clip(round_half_away(part / factor), -half, half - 1)
    return out


def dequantize_weights(q: np.ndarray, scales: np.ndarray, *, channel_axis: int = 0) -> np.ndarray:
    """Return ``q * scale`` as float32.

    Parameters
    ----------
    q : int8 array
    scales : float32 array (C,) or (1,)
    channel_axis : int

    Raises
    ------
    ValueError
        If the scales do not fit or are not positive and finite.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import dequantize_weights
    >>> q = np.array([[127, -64], [-128, 64]], np.int8)
    >>> dequantize_weights(q, np.array([1.0, 0.25], np.float32))
    array([[127., -64.],
           [-32.,  16.]], dtype=float32)
    """
    q = check_array("q", q, np.int8, None, "cpu")
    return np.multiply(q, _channels(q, scales, channel_axis), dtype=np.float32)


def fake_quantize_weights(
    w: np.ndarray, scales: np.ndarray, *, channel_axis: int = 0, bits: int = 8
) -> np.ndarray:
    """Return ``dequantize_weights(quantize_weights(w))`` as float32.

    Parameters
    ----------
    w, scales, channel_axis, bits
        As in `quantize_weights`, whose errors are raised.
    """
    q = quantize_weights(w, scales, channel_axis=channel_axis, bits=bits)
    return dequantize_weights(q, scales, channel_axis=channel_axis)

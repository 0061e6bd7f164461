"""The number format: ``q = clip(round(x / scale) + offset)``, ``x ~ (q - offset) * scale``.

Division by the scale, not multiplication by its reciprocal: they round differently.
Rounding is half away from zero. Widths of 2..8 bits are held in int8, or all greater by
``2**(bits-1)`` in uint8.

`quantize`, `dequantize`, `fake_quantize` and `requantize` take arrays of a CUDA device as well,
if that is the device; their results then lie there too, and so must an `out` that is given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from kernels.checks import (
    Array,
    as_array,
    check_array,
    check_bits,
    check_integer_dtype,
    check_out,
    check_scales,
)
from kernels.dispatch import Device, backend
from kernels.params import ChannelParams, QuantParams, check_channels
from kernels.rounding import round_half_away

__all__ = [
    "MAX_SCALE",
    "MIN_SCALE",
    "dequantize",
    "fake_quantize",
    "guard_scale",
    "guard_scales",
    "params_from_range",
    "quantize",
    "requantize",
]

#: Scales below this are taken as 1.0: the data is all (but) zero.
MIN_SCALE = 1.1920929e-7
#: Scales above this are an error: their reciprocal falls below `MIN_SCALE`.
MAX_SCALE = 1.0 / MIN_SCALE


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


def _returned(result: Any, out: Any) -> np.ndarray:
    """Return what the caller gets: the array that was given to be filled, if there was one."""
    return result if out is None else out


def quantize(
    x: Array,
    params: QuantParams | ChannelParams,
    *,
    dtype: DTypeLike = np.int8,
    out: Array | None = None,
    device: Device | str = "cpu",
) -> np.ndarray:
    """Quantize to int8 or uint8: ``clip(round(x / scale) + offset)``.

    Parameters
    ----------
    x : float32 array, any shape
        Infinities saturate.
    params : QuantParams or ChannelParams
    dtype : {np.int8, np.uint8}
        uint8 holds the same integers plus ``2**(bits-1)``: its zero point is
        `QuantParams.unsigned_zero_point`. This is the uint8 of PyTorch and ONNX.
    out : array of that dtype, shape of `x`, optional
        C-contiguous; filled and returned. After an error its values mean nothing.
    device : str

    Returns
    -------
    int8 or uint8 array, shape of `x`

    Raises
    ------
    TypeError
        If `x` lies on a CUDA device that is not to compute, or a dtype is wrong.
    ValueError
        If `x` holds a NaN, channels do not fit `x`, or `out` cannot take the result.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import QuantParams, quantize
    >>> x = np.array([-1.0, 0.0, 0.25, 0.6, 100.0], np.float32)
    >>> quantize(x, QuantParams(0.5, 10))  # half a step rounds away from zero, 100 saturates
    array([  8,  10,  11,  11, 127], dtype=int8)
    >>> quantize(x, QuantParams(0.5, 10), dtype=np.uint8)
    array([136, 138, 139, 139, 255], dtype=uint8)
    """
    x = check_array("x", x, np.float32, None, device)
    kind = check_integer_dtype(dtype)
    check_channels(params, x)
    target = check_out(out, x, kind)
    result = backend(device, "affine").quantize(x, params, kind, target)
    return _returned(result, out)


def dequantize(
    q: Array,
    params: QuantParams | ChannelParams,
    *,
    out: Array | None = None,
    device: Device | str = "cpu",
) -> np.ndarray:
    """Return ``(q - offset) * scale`` as float32.

    Parameters
    ----------
    q : int8 or uint8 array, any shape
        As `quantize` returns it for that dtype.
    params : QuantParams or ChannelParams
    out : float32 array, shape of `q`, optional
        C-contiguous; filled and returned.
    device : str

    Raises
    ------
    TypeError
        If `q` lies on a CUDA device that is not to compute, or a dtype is wrong.
    ValueError
        If channels do not fit `q`, or `out` cannot take the result.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import QuantParams, dequantize
    >>> dequantize(np.array([8, 10, 127], np.int8), QuantParams(0.5, 10))
    array([-1. ,  0. , 58.5], dtype=float32)
    >>> dequantize(np.array([136, 138, 255], np.uint8), QuantParams(0.5, 10))
    array([-1. ,  0. , 58.5], dtype=float32)
    """
    q = as_array("q", q, np.int8)
    own = str(getattr(q, "dtype", "int8")).rpartition(".")[2]  # torch has names of its own
    q = check_array("q", q, np.uint8 if own == "uint8" else np.int8, None, device)
    check_channels(params, q)
    target = check_out(out, q, np.float32)
    result = backend(device, "affine").dequantize(q, params, target)
    return _returned(result, out)


def fake_quantize(
    x: Array,
    params: QuantParams | ChannelParams,
    *,
    out: Array | None = None,
    device: Device | str = "cpu",
) -> np.ndarray:
    """Return ``dequantize(quantize(x))`` in one pass, float32.

    Parameters
    ----------
    x : float32 array, any shape
    params : QuantParams or ChannelParams
    out : float32 array, shape of `x`, optional
        C-contiguous; filled and returned. It may be `x` itself. After an error its values mean
        nothing.
    device : str

    Raises
    ------
    TypeError
        If `x` lies on a CUDA device that is not to compute, or a dtype is wrong.
    ValueError
        If `x` holds a NaN, channels do not fit `x`, or `out` cannot take the result.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import QuantParams, fake_quantize
    >>> fake_quantize(np.array([-1.0, 0.6, 100.0], np.float32), QuantParams(0.5, 10))
    array([-1. ,  0.5, 58.5], dtype=float32)
    """
    x = check_array("x", x, np.float32, None, device)
    check_channels(params, x)
    target = check_out(out, x, np.float32)
    result = backend(device, "affine").fake_quantize(x, params, target)
    return _returned(result, out)


def requantize(
    acc: Array,
    scale: Array | float,
    params: QuantParams,
    *,
    dtype: DTypeLike = np.int8,
    out: Array | None = None,
    device: Device | str = "cpu",
) -> np.ndarray:
    """Turn int32 sums into int8 or uint8: ``quantize(float32(acc) * scale, params)``.

    Parameters
    ----------
    acc : int32 array (N, C, ...)
    scale : float32 array (C,) or float
        Real value of one unit of `acc`, e.g. scale_x * scale_w[c].
    params : QuantParams
        Of the result.
    dtype : {np.int8, np.uint8}
        As for `quantize`.
    out : array of that dtype, shape of `acc`, optional
        C-contiguous; filled and returned.
    device : str

    Returns
    -------
    int8 or uint8 array, shape of `acc`

    Raises
    ------
    TypeError
        If `acc` lies on a CUDA device that is not to compute, or a dtype is wrong.
    ValueError
        If there are neither 1 nor C scales, one is not positive and finite, or `out` cannot take
        the result.

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
    scales = check_scales("scale", scale)
    if scales.size != 1 and (acc.ndim < 2 or scales.size != acc.shape[1]):
        raise ValueError(f"{scales.size} scales do not fit sums of shape {acc.shape}")
    kind = check_integer_dtype(dtype)
    target = check_out(out, acc, kind)
    result = backend(device, "affine").requantize(acc, scales, params, kind, target)
    return _returned(result, out)

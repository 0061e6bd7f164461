"""Weights: their scales by ARQ, for each channel or for the tensor, and their integers."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np

from kernels.affine import guard_scales
from kernels.checks import Array, check_array, check_bits, check_scales, is_device_array
from kernels.dispatch import Device, backend
from kernels.rounding import round_half_away

__all__ = [
    "arq",
    "arq_fake_quantize",
    "dequantize_weights",
    "fake_quantize_weights",
    "quantize_weights",
]

#: Weights rounded at a time, as that takes four times their memory.
_PART = 1 << 20


def arq(w: Array, channel_axis: int | None = 0, *, bits: int = 8) -> np.ndarray:
    """Return the scales that cover weights symmetrically, offset 0.

    With m the extreme of larger magnitude, ``scale = m / (2**(bits-1) - 1)`` if m > 0,
    else ``m / -2**(bits-1)``: a negative extreme uses the one level more that negative
    numbers have. A channel that is all (but) zero gets scale 1.

    Parameters
    ----------
    w : float32 array
        E.g. (O, C, kh, kw) with axis 0; deconvolution's (C, O, kh, kw) has axis 1.
    channel_axis : int or None
        The axis with one scale for each index; None: one scale for the tensor.
    bits : int
        2..8.

    Returns
    -------
    float32 array (channels,) or (1,)

    Raises
    ------
    ValueError
        If `w` is empty, holds NaN or infinity (the first such channel is named), or the axis
        is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import arq
    >>> w = np.array([[127.0, -3.0], [2.0, -64.0]], np.float32)
    >>> arq(w)  # 127 / 127 and -64 / -128
    array([1. , 0.5], dtype=float32)
    >>> arq(w, None)
    array([1.], dtype=float32)
    """
    w, half = _check(w, channel_axis, bits, "cpu")
    rows = w.reshape(1, -1) if channel_axis is None else _rows(w, channel_axis)
    return _scales(rows.min(axis=1), rows.max(axis=1), half, channel_axis)


def arq_fake_quantize(
    w: Array, channel_axis: int | None = 0, *, bits: int = 8, device: Device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights quantized by their own ARQ scales and dequantized, and those scales.

    The same as `arq` and `fake_quantize_weights`, in one pass: training does it at each step.

    Parameters
    ----------
    w, channel_axis, bits
        As for `arq`; `w` may lie on a CUDA device, if that is the one to compute.
    device : str

    Returns
    -------
    fake : float32 array, shape of `w`
        Where `w` lies.
    scales : float32 array (channels,) or (1,)

    Raises
    ------
    ValueError
        As `arq`.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import arq_fake_quantize
    >>> fake, scales = arq_fake_quantize(np.array([[127.0, -3.2], [0.3, -64.0]], np.float32))
    >>> fake
    array([[127. ,  -3. ],
           [  0.5, -64. ]], dtype=float32)
    >>> scales
    array([1. , 0.5], dtype=float32)
    """
    w, half = _check(w, channel_axis, bits, device)
    axis = channel_axis or 0
    kernels = backend(device, "weights")
    rows = _device_rows(w, axis, kernels) if is_device_array(w) else _rows(w, axis)
    low, high = kernels.row_ranges(rows)
    if channel_axis is None:
        low, high = low.min(keepdims=True), high.max(keepdims=True)
    scales = _scales(low, high, half, channel_axis)
    fake = kernels.fake_quantize_rows(rows, np.broadcast_to(scales, len(rows)), half)
    if is_device_array(w):
        outer, count, inner = _around(w, axis)
        return kernels.swapped(fake.reshape(count, outer, inner)).reshape(tuple(w.shape)), scales
    if axis == 0:
        return fake.reshape(w.shape), scales
    moved = fake.reshape(np.moveaxis(w, axis, 0).shape)
    return np.ascontiguousarray(np.moveaxis(moved, 0, axis)), scales


def _check(w: Array, channel_axis: int | None, bits: int, device: str) -> tuple[np.ndarray, int]:
    """Return the clean weights and half the number of levels."""
    w = check_array("w", w, np.float32, None, device)
    half = 1 << (check_bits(bits) - 1)
    if not math.prod(w.shape):
        raise ValueError("w is empty: there is no range to take a scale from")
    if channel_axis is not None and not -w.ndim <= channel_axis < w.ndim:
        raise ValueError(f"channel_axis {channel_axis} is not an axis of shape {w.shape}")
    return w, half


def _scales(low: np.ndarray, high: np.ndarray, half: int, channel_axis: int | None) -> np.ndarray:
    """Return the scale of each row by its extremes, which are NaN or infinite if its data is."""
    bad = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
    if bad.size:
        place = "" if channel_axis is None else f" in channel {bad[0]}"
        raise ValueError(f"the weights hold NaN or infinity{place}")
    scales = np.where(high > -low, high / np.float32(half - 1), low / np.float32(-half))
    return guard_scales(scales.astype(np.float32))


def _around(w: np.ndarray, axis: int) -> tuple[int, int, int]:
    """Return how long the axes before one are together, the axis, and those behind it."""
    shape = tuple(w.shape) or (1,)
    at = axis % len(shape)
    return math.prod(shape[:at]), shape[at], math.prod(shape[at + 1 :])


def _device_rows(w: np.ndarray, axis: int, code: ModuleType) -> np.ndarray:
    """Return the rows of a device array."""
    shape = _around(w, axis)
    return code.swapped(w.reshape(shape)).reshape(shape[1], -1)


def _rows(w: np.ndarray, axis: int) -> np.ndarray:
    if not w.ndim:
        return w.reshape(1, 1)
    return np.ascontiguousarray(np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1))


def _channels(w: np.ndarray, scales: Array, channel_axis: int) -> np.ndarray:
    """Return the scales shaped to multiply `w`."""
    scales = check_scales("scales", scales)
    shape = [1] * w.ndim
    if scales.size != 1:
        if not -w.ndim <= channel_axis < w.ndim or w.shape[channel_axis] != scales.size:
            raise ValueError(f"{scales.size} scales do not fit axis {channel_axis} of {w.shape}")
        shape[channel_axis] = -1
    return scales.reshape(shape)


def quantize_weights(
    w: Array, scales: Array, *, channel_axis: int = 0, bits: int = 8
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


def dequantize_weights(q: Array, scales: Array, *, channel_axis: int = 0) -> np.ndarray:
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
    w: Array, scales: Array, *, channel_axis: int = 0, bits: int = 8
) -> np.ndarray:
    """Return ``dequantize_weights(quantize_weights(w))`` as float32.

    Parameters
    ----------
    w, scales, channel_axis, bits
        As in `quantize_weights`, whose errors are raised.
    """
    q = quantize_weights(w, scales, channel_axis=channel_axis, bits=bits)
    return dequantize_weights(q, scales, channel_axis=channel_axis)

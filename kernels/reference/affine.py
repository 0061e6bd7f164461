"""Quantize, dequantize, fake-quantize, requantize in NumPy: the definition."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.params import ChannelParams, QuantParams, format_numbers
from kernels.rounding import round_half_away

__all__ = ["dequantize", "fake_quantize", "quantize", "requantize"]

Params = QuantParams | ChannelParams


def _numbers(params: Params, dtype: type, ndim: int) -> tuple[Any, Any, Any, Any]:
    """Return `format_numbers`, shaped to meet an array of that rank."""
    scale, offset, low, high = format_numbers(params, dtype)
    if isinstance(params, ChannelParams):
        shape = [1] * ndim
        shape[params.axis] = -1
        scale, offset = scale.reshape(shape), offset.reshape(shape)
    return scale, offset, low, high


def _stored(values: np.ndarray, dtype: type, out: np.ndarray | None) -> np.ndarray:
    if out is None:
        return np.asarray(values, dtype)
    out[...] = values
    return out


def quantize(
    x: np.ndarray, params: Params, dtype: type = np.int8, out: np.ndarray | None = None
) -> np.ndarray:
    """See `kernels.quantize`."""
    if np.isnan(x).any():
        raise ValueError("x holds NaN, which has no quantized value")
    scale, offset, low, high = _numbers(params, dtype, x.ndim)
    with np.errstate(over="ignore", invalid="ignore"):  # infinities saturate
        q = round_half_away(x / scale) + offset
    return _stored(np.clip(q, low, high), dtype, out)


def dequantize(q: np.ndarray, params: Params, out: np.ndarray | None = None) -> np.ndarray:
    """See `kernels.dequantize`."""
    scale, offset, _, _ = _numbers(params, q.dtype.type, q.ndim)
    with np.errstate(over="ignore"):
        return _stored(np.subtract(q, offset, dtype=np.float32) * scale, np.float32, out)


def fake_quantize(x: np.ndarray, params: Params, out: np.ndarray | None = None) -> np.ndarray:
    """See `kernels.fake_quantize`."""
    return dequantize(quantize(x, params), params, out)


def requantize(
    acc: np.ndarray,
    scales: np.ndarray,
    params: QuantParams,
    dtype: type = np.int8,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """See `kernels.requantize`."""
    shape = (1, -1) + (1,) * (acc.ndim - 2) if scales.size > 1 else (1,) * acc.ndim
    with np.errstate(over="ignore"):
        values = acc.astype(np.float32) * scales.reshape(shape)
    return quantize(values, params, dtype, out)

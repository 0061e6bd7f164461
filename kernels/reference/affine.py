"""Quantize, dequantize, fake-quantize, requantize in NumPy: the definition."""

from __future__ import annotations

import numpy as np

from kernels.affine import QuantParams
from kernels.rounding import round_half_away

__all__ = ["dequantize", "fake_quantize", "quantize", "requantize"]


def _steps(x: np.ndarray, params: QuantParams) -> np.ndarray:
    if np.isnan(x).any():
        raise ValueError("x holds NaN, which has no quantized value")
    with np.errstate(over="ignore", invalid="ignore"):  # infinities saturate
        q = round_half_away(x / np.float32(params.scale)) + np.float32(params.offset)
    return np.clip(q, np.float32(params.low), np.float32(params.high))


def quantize(x: np.ndarray, params: QuantParams) -> np.ndarray:
    """See `kernels.quantize`."""
    return np.asarray(_steps(x, params), np.int8)


def dequantize(q: np.ndarray, params: QuantParams) -> np.ndarray:
    """See `kernels.dequantize`."""
    steps = np.subtract(q, params.offset, dtype=np.float32)
    with np.errstate(over="ignore"):
        return np.asarray(steps * np.float32(params.scale))


def fake_quantize(x: np.ndarray, params: QuantParams) -> np.ndarray:
    """See `kernels.fake_quantize`."""
    return dequantize(quantize(x, params), params)


def requantize(acc: np.ndarray, scales: np.ndarray, params: QuantParams) -> np.ndarray:
    """See `kernels.requantize`."""
    shape = (1, -1) + (1,) * (acc.ndim - 2) if scales.size > 1 else (1,) * acc.ndim
    with np.errstate(over="ignore"):
        values = acc.astype(np.float32) * scales.reshape(shape)
    return quantize(values, params)

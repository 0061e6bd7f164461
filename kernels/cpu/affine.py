"""Quantize, dequantize, fake-quantize, requantize: one vectorized pass, all cores."""

from __future__ import annotations

import numpy as np

from kernels.affine import QuantParams
from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange, round_half_away

__all__ = ["dequantize", "fake_quantize", "quantize", "requantize"]

_CHUNK = 1 << 15


@jit
def steps(x, scale, offset, low, high):
    """Return the integer that stands for `x`, as a float32."""
    return min(max(round_half_away(x / scale) + offset, low), high)


@parallel_jit
def _quantize(x, scale, offset, low, high, out):
    chunks = (x.size + _CHUNK - 1) // _CHUNK
    nans = 0
    for c in prange(chunks):
        bad = 0
        for i in range(c * _CHUNK, min(x.size, (c + 1) * _CHUNK)):
            v = x[i]
            bad += v != v
            out[i] = np.int8(steps(v, scale, offset, low, high))
        nans += bad
    return nans


@parallel_jit
def _fake_quantize(x, scale, offset, low, high, out):
    chunks = (x.size + _CHUNK - 1) // _CHUNK
    nans = 0
    for c in prange(chunks):
        bad = 0
        for i in range(c * _CHUNK, min(x.size, (c + 1) * _CHUNK)):
            v = x[i]
            bad += v != v
            out[i] = (steps(v, scale, offset, low, high) - offset) * scale
        nans += bad
    return nans


@parallel_jit
def _dequantize(q, scale, offset, out):
    chunks = (q.size + _CHUNK - 1) // _CHUNK
    for c in prange(chunks):
        for i in range(c * _CHUNK, min(q.size, (c + 1) * _CHUNK)):
            out[i] = (np.float32(q[i]) - offset) * scale


@parallel_jit
def _requantize(acc, scales, scale, offset, low, high, out):
    rows, inner = acc.shape
    for r in prange(rows):
        factor = scales[r % scales.size]
        for i in range(inner):
            out[r, i] = np.int8(steps(np.float32(acc[r, i]) * factor, scale, offset, low, high))


def _constants(params: QuantParams) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    return (
        np.float32(params.scale),
        np.float32(params.offset),
        np.float32(params.low),
        np.float32(params.high),
    )


def _refuse_nan(nans: int) -> None:
    if nans:
        raise ValueError(f"x holds NaN ({nans} of them), which has no quantized value")


def quantize(x: np.ndarray, params: QuantParams) -> np.ndarray:
    """See `kernels.quantize`."""
    out = np.empty(x.shape, np.int8)
    with parallel_entry():
        _refuse_nan(_quantize(x.reshape(-1), *_constants(params), out.reshape(-1)))
    return out


def fake_quantize(x: np.ndarray, params: QuantParams) -> np.ndarray:
    """See `kernels.fake_quantize`."""
    out = np.empty(x.shape, np.float32)
    with parallel_entry():
        _refuse_nan(_fake_quantize(x.reshape(-1), *_constants(params), out.reshape(-1)))
    return out


def dequantize(q: np.ndarray, params: QuantParams) -> np.ndarray:
    """See `kernels.dequantize`."""
    out = np.empty(q.shape, np.float32)
    scale, offset = _constants(params)[:2]
    with parallel_entry():
        _dequantize(q.reshape(-1), scale, offset, out.reshape(-1))
    return out


def requantize(acc: np.ndarray, scales: np.ndarray, params: QuantParams) -> np.ndarray:
    """See `kernels.requantize`."""
    out = np.empty(acc.shape, np.int8)
    if not acc.size:
        return out
    rows = acc.shape[0] * acc.shape[1] if scales.size > 1 else 1
    with parallel_entry():
        _requantize(acc.reshape(rows, -1), scales, *_constants(params), out.reshape(rows, -1))
    return out

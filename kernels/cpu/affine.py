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


@jit
def _quantize_run(x, scale, offset, low, high, out):
    """Quantize a run; return how many NaN there were. Alone in a function, it vectorizes."""
    nans = 0
    for i in range(x.size):
        v = x[i]
        nans += v != v
        out[i] = np.int8(np.int32(steps(v, scale, offset, low, high)))
    return nans


@jit
def _fake_quantize_run(x, scale, offset, low, high, out):
    """Fill in ``(steps(x) - offset) * scale``, float32 (n,), and return how many are NaN."""
    nans = 0
    for i in range(x.size):
        v = x[i]
        nans += v != v
        out[i] = (steps(v, scale, offset, low, high) - offset) * scale
    return nans


@jit
def _dequantize_run(q, scale, offset, out):
    """Fill in ``(q - offset) * scale``, float32 (n,), of int8 (n,)."""
    for i in range(q.size):
        out[i] = (np.float32(q[i]) - offset) * scale


@jit
def _requantize_run(acc, factor, scale, offset, low, high, out):
    """Fill in the int8 of ``acc * factor``, of int32 sums (n,)."""
    for i in range(acc.size):
        v = np.float32(acc[i]) * factor
        out[i] = np.int8(np.int32(steps(v, scale, offset, low, high)))


@parallel_jit
def _quantize(x, scale, offset, low, high, out):
    """Fill in int8 (n,) of float32 (n,), and return how many are NaN."""
    nans = 0
    for chunk in prange((x.size + _CHUNK - 1) // _CHUNK):
        a = np.int64(chunk) * _CHUNK
        b = min(a + _CHUNK, x.size)
        nans += _quantize_run(x[a:b], scale, offset, low, high, out[a:b])
    return nans


@parallel_jit
def _fake_quantize(x, scale, offset, low, high, out):
    """Fill in the float32 values (n,) that the integers of x (n,) stand for; return its NaN."""
    nans = 0
    for chunk in prange((x.size + _CHUNK - 1) // _CHUNK):
        a = np.int64(chunk) * _CHUNK
        b = min(a + _CHUNK, x.size)
        nans += _fake_quantize_run(x[a:b], scale, offset, low, high, out[a:b])
    return nans


@parallel_jit
def _dequantize(q, scale, offset, out):
    """Fill in float32 (n,) of int8 (n,)."""
    for chunk in prange((q.size + _CHUNK - 1) // _CHUNK):
        a = np.int64(chunk) * _CHUNK
        b = min(a + _CHUNK, q.size)
        _dequantize_run(q[a:b], scale, offset, out[a:b])


@parallel_jit
def _requantize(acc, scales, scale, offset, low, high, out):
    """Fill in int8 (rows, n) of int32 sums; row r takes ``scales[r % scales.size]``."""
    for row in prange(acc.shape[0]):
        r = np.int64(row)
        _requantize_run(acc[r], scales[r % scales.size], scale, offset, low, high, out[r])


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

"""Quantize, dequantize, fake-quantize, requantize: one vectorized pass, all cores."""

from __future__ import annotations

import math

import numpy as np

from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange, round_float32
from kernels.params import ChannelParams, QuantParams, format_numbers

__all__ = ["dequantize", "fake_quantize", "quantize", "requantize"]

Params = QuantParams | ChannelParams

_CHUNK = 1 << 15


@jit
def steps(x, scale, offset, low, high):
    """Return the integer that stands for `x`, as a float32."""
    return min(max(round_float32(x / scale) + offset, low), high)


@jit
def _quantize_run(x, scale, offset, low, high, out):
    """Quantize a run; return how many NaN there were. Alone in a function, it vectorizes."""
    nans = np.int32(0)  # as wide as the values, for vectors
    for i in range(x.size):
        v = x[i]
        nans = np.int32(nans + np.int32(v != v))
        out[i] = np.int8(np.int32(steps(v, scale, offset, low, high)))
    return nans


@jit
def _fake_quantize_run(x, scale, offset, low, high, out):
    """Fill in ``(steps(x) - offset) * scale``, float32 (n,), and return how many are NaN."""
    nans = np.int32(0)  # as wide as the values, for vectors
    for i in range(x.size):
        v = x[i]
        nans = np.int32(nans + np.int32(v != v))
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


@parallel_jit
def _quantize_rows(x, scales, offsets, low, high, out):
    """Fill in int8 (rows, n) of float32 as `_quantize`; row r takes ``scales[r % scales.size]``."""
    nans = 0
    for row in prange(x.shape[0]):
        r = np.int64(row)
        c = r % scales.size
        nans += _quantize_run(x[r], scales[c], offsets[c], low, high, out[r])
    return nans


@parallel_jit
def _fake_quantize_rows(x, scales, offsets, low, high, out):
    """Fill in float32 (rows, n) as `_fake_quantize`, with scales as `_quantize_rows`."""
    nans = 0
    for row in prange(x.shape[0]):
        r = np.int64(row)
        c = r % scales.size
        nans += _fake_quantize_run(x[r], scales[c], offsets[c], low, high, out[r])
    return nans


@parallel_jit
def _dequantize_rows(q, scales, offsets, out):
    """Fill in float32 (rows, n) of integers, with scales as `_quantize_rows`."""
    for row in prange(q.shape[0]):
        r = np.int64(row)
        c = r % scales.size
        _dequantize_run(q[r], scales[c], offsets[c], out[r])


def _refuse_nan(nans: int) -> None:
    if nans:
        raise ValueError(f"x holds NaN ({nans} of them), which has no quantized value")


def _result(x: np.ndarray, dtype: type, out: np.ndarray | None) -> np.ndarray:
    return np.empty(x.shape, dtype) if out is None else out


def _laid(params: Params, *arrays: np.ndarray) -> list[np.ndarray]:
    """Return arrays of one shape flat, or in rows of one channel each; they are not empty."""
    if isinstance(params, QuantParams):
        return [a.reshape(-1) for a in arrays]
    shape = arrays[0].shape
    inner = math.prod(shape[params.axis % len(shape) + 1 :])
    return [a.reshape(-1, inner) for a in arrays]


def quantize(
    x: np.ndarray, params: Params, dtype: type = np.int8, out: np.ndarray | None = None
) -> np.ndarray:
    """See `kernels.quantize`."""
    out = _result(x, dtype, out)
    if not x.size:
        return out
    # the bits of a uint8 are those of the int8 that it wraps to: one kernel does for both
    source, target = _laid(params, x, out.view(np.int8))
    run = _quantize if source.ndim == 1 else _quantize_rows
    with parallel_entry():
        _refuse_nan(run(source, *format_numbers(params, dtype), target))
    return out


def fake_quantize(x: np.ndarray, params: Params, out: np.ndarray | None = None) -> np.ndarray:
    """See `kernels.fake_quantize`."""
    out = _result(x, np.float32, out)
    if not x.size:
        return out
    source, target = _laid(params, x, out)
    run = _fake_quantize if source.ndim == 1 else _fake_quantize_rows
    with parallel_entry():
        _refuse_nan(run(source, *format_numbers(params, np.int8), target))
    return out


def dequantize(q: np.ndarray, params: Params, out: np.ndarray | None = None) -> np.ndarray:
    """See `kernels.dequantize`."""
    out = _result(q, np.float32, out)
    if not q.size:
        return out
    source, target = _laid(params, q, out)
    run = _dequantize if source.ndim == 1 else _dequantize_rows
    scale, offset, _, _ = format_numbers(params, q.dtype.type)
    with parallel_entry():
        run(source, scale, offset, target)
    return out


def requantize(
    acc: np.ndarray,
    scales: np.ndarray,
    params: QuantParams,
    dtype: type = np.int8,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """See `kernels.requantize`."""
    out = _result(acc, dtype, out)
    if not acc.size:
        return out
    rows = acc.shape[0] * acc.shape[1] if scales.size > 1 else 1
    target = out.view(np.int8).reshape(rows, -1)
    with parallel_entry():
        _requantize(acc.reshape(rows, -1), scales, *format_numbers(params, dtype), target)
    return out

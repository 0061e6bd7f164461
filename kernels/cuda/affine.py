"""Quantize, dequantize, fake-quantize, requantize: one pass over memory.

A thread loads four values before it stores one, each a grid apart: loads of neighbouring
threads lie together, and enough of them are under way to fill the memory's bandwidth. Indices
are unsigned, which spares the code for those that count from the end.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from kernels.affine import QuantParams
from kernels.cuda.arrays import empty, flat, on_device, shaped, zeros
from kernels.cuda.jit import (
    THREADS,
    add,
    cuda,
    device_jit,
    kernel,
    launch,
    mul,
    round_half_away,
    streams,
    sub,
)

__all__ = ["dequantize", "fake_quantize", "lanes", "quantize", "requantize", "steps"]

#: Sums of a piece where all share one scale.
_PIECE = 1 << 12


@device_jit
def steps(v, scale, offset, low, high):
    """Return the integer that stands for `v`, as a float32; `low` for NaN."""
    q = add(round_half_away(v / scale), offset)
    q = q if q > low else low
    return q if q < high else high


@device_jit
def _put(v, scale, offset, low, high, out, i):
    """Quantize a value; return whether it is NaN."""
    out[i] = np.int8(np.int32(steps(v, scale, offset, low, high)))
    return v != v


@device_jit
def _put_fake(v, scale, offset, low, high, out, i):
    """Fake-quantize a value; return whether it is NaN."""
    out[i] = mul(sub(steps(v, scale, offset, low, high), offset), scale)
    return v != v


@kernel
def _quantize(x, scale, offset, low, high, out, nans):
    n, step, i = np.uint64(x.size), np.uint64(cuda.gridsize(1)), np.uint64(cuda.grid(1))
    bad = 0
    while i + step + step + step < n:
        j, k, m = i + step, i + step + step, i + step + step + step
        a, b, c, d = x[i], x[j], x[k], x[m]
        bad += _put(a, scale, offset, low, high, out, i)
        bad += _put(b, scale, offset, low, high, out, j)
        bad += _put(c, scale, offset, low, high, out, k)
        bad += _put(d, scale, offset, low, high, out, m)
        i = m + step
    while i < n:
        bad += _put(x[i], scale, offset, low, high, out, i)
        i += step
    if bad:
        cuda.atomic.add(nans, 0, bad)


@kernel
def _fake_quantize(x, scale, offset, low, high, out, nans):
    n, step, i = np.uint64(x.size), np.uint64(cuda.gridsize(1)), np.uint64(cuda.grid(1))
    bad = 0
    while i + step + step + step < n:
        j, k, m = i + step, i + step + step, i + step + step + step
        a, b, c, d = x[i], x[j], x[k], x[m]
        bad += _put_fake(a, scale, offset, low, high, out, i)
        bad += _put_fake(b, scale, offset, low, high, out, j)
        bad += _put_fake(c, scale, offset, low, high, out, k)
        bad += _put_fake(d, scale, offset, low, high, out, m)
        i = m + step
    while i < n:
        bad += _put_fake(x[i], scale, offset, low, high, out, i)
        i += step
    if bad:
        cuda.atomic.add(nans, 0, bad)


@kernel
def _dequantize(q, scale, offset, out):
    n, step, i = np.uint64(q.size), np.uint64(cuda.gridsize(1)), np.uint64(cuda.grid(1))
    while i + step + step + step < n:
        j, k, m = i + step, i + step + step, i + step + step + step
        a, b, c, d = q[i], q[j], q[k], q[m]
        out[i] = mul(sub(np.float32(a), offset), scale)
        out[j] = mul(sub(np.float32(b), offset), scale)
        out[k] = mul(sub(np.float32(c), offset), scale)
        out[m] = mul(sub(np.float32(d), offset), scale)
        i = m + step
    while i < n:
        out[i] = mul(sub(np.float32(q[i]), offset), scale)
        i += step


@device_jit
def _put_sum(acc, factor, scale, offset, low, high, out, i):
    """Requantize a sum."""
    v = mul(np.float32(acc), factor)
    out[i] = np.int8(np.int32(steps(v, scale, offset, low, high)))


@kernel
def _requantize(acc, inner, lanes, scales, scale, offset, low, high, out):
    """Requantize rows of `inner` sums, each by so many threads of a block; see `lanes`."""
    a_block = cuda.blockDim.x // lanes
    step, lane = np.uint64(lanes), np.uint64(cuda.threadIdx.x % lanes)
    row = cuda.blockIdx.x * a_block + cuda.threadIdx.x // lanes
    while row * inner < acc.size:
        factor = scales[row % scales.size]
        n, i = np.uint64(min((row + 1) * inner, acc.size)), np.uint64(row * inner) + lane
        while i + step + step + step < n:
            j, k, m = i + step, i + step + step, i + step + step + step
            a, b, c, d = acc[i], acc[j], acc[k], acc[m]
            _put_sum(a, factor, scale, offset, low, high, out, i)
            _put_sum(b, factor, scale, offset, low, high, out, j)
            _put_sum(c, factor, scale, offset, low, high, out, k)
            _put_sum(d, factor, scale, offset, low, high, out, m)
            i = m + step
        while i < n:
            _put_sum(acc[i], factor, scale, offset, low, high, out, i)
            i += step
        row += cuda.gridDim.x * a_block


def lanes(inner: int) -> int:
    """Return how many threads share a row: four values each, a power of two at most a block.

    Threads of short rows would idle if a row took a whole block.
    """
    return min(1 << max(-(-inner // 4) - 1, 0).bit_length(), THREADS)


def _constants(params: QuantParams) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    return (
        np.float32(params.scale),
        np.float32(params.offset),
        np.float32(params.low),
        np.float32(params.high),
    )


def _without_nan(function: Any, x: Any, params: QuantParams, dtype: type) -> Any:
    """Run a kernel that counts NaN; refuse the data if there are any."""
    out = empty(prod(x.shape), dtype)
    if out.size:
        nans = zeros(1, np.int64)
        launch(function, streams(out.size), THREADS, flat(x), *_constants(params), out, nans)
        bad = int(nans.copy_to_host()[0])
        if bad:
            raise ValueError(f"x holds NaN ({bad} of them), which has no quantized value")
    return shaped(out, x)


def quantize(x: Any, params: QuantParams) -> Any:
    """See `kernels.quantize`."""
    return _without_nan(_quantize, x, params, np.int8)


def fake_quantize(x: Any, params: QuantParams) -> Any:
    """See `kernels.fake_quantize`."""
    return _without_nan(_fake_quantize, x, params, np.float32)


def dequantize(q: Any, params: QuantParams) -> Any:
    """See `kernels.dequantize`."""
    out = empty(prod(q.shape), np.float32)
    if out.size:
        scale, offset = _constants(params)[:2]
        launch(_dequantize, streams(out.size), THREADS, flat(q), scale, offset, out)
    return shaped(out, q)


def requantize(acc: Any, scales: np.ndarray, params: QuantParams) -> Any:
    """See `kernels.requantize`."""
    out = empty(prod(acc.shape), np.int8)
    if out.size:
        inner = prod(acc.shape[2:]) if scales.size > 1 else _PIECE
        each = lanes(inner)
        blocks = streams(-(-out.size // inner) * each * 4)
        sums, factors = flat(acc), on_device(scales)
        launch(_requantize, blocks, THREADS, sums, inner, each, factors, *_constants(params), out)
    return shaped(out, acc)

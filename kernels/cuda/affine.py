"""Quantize, dequantize, fake-quantize, requantize: one pass over memory."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from kernels.affine import QuantParams
from kernels.cuda.arrays import empty, flat, on_device, shaped, zeros
from kernels.cuda.block import stream
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
def _quantized(v, numbers, out, i):
    """Store a value's integer; return whether it is NaN."""
    out[i] = np.int8(np.int32(steps(v, *numbers)))
    return v != v


@device_jit
def _faked(v, numbers, out, i):
    """Store a fake-quantized value; return whether it is NaN."""
    scale, offset, low, high = numbers
    out[i] = mul(sub(steps(v, scale, offset, low, high), offset), scale)
    return v != v


@device_jit
def _dequantized(q, numbers, out, i):
    """Store the value of an integer, and count none."""
    scale, offset = numbers
    out[i] = mul(sub(np.float32(q), offset), scale)
    return False


@device_jit
def _requantized(acc, numbers, out, i):
    """Store the integer of a sum, and count none."""
    factor, scale, offset, low, high = numbers
    out[i] = np.int8(np.int32(steps(mul(np.float32(acc), factor), scale, offset, low, high)))
    return False


_QUANTIZE, _FAKE_QUANTIZE = stream(_quantized), stream(_faked)
_DEQUANTIZE, _REQUANTIZE = stream(_dequantized), stream(_requantized)


@kernel
def _quantize(x, scale, offset, low, high, out, nans):
    """Fill in int8 (n,) of float32 (n,); add how many are NaN to ``nans[0]``, int64."""
    first, step = np.uint64(cuda.grid(1)), np.uint64(cuda.gridsize(1))
    bad = _QUANTIZE(x, first, np.uint64(x.size), step, (scale, offset, low, high), out)
    if bad:
        cuda.atomic.add(nans, 0, bad)


@kernel
def _fake_quantize(x, scale, offset, low, high, out, nans):
    """Fill in the values that the integers of x (n,) stand for; add its NaN to ``nans[0]``."""
    first, step = np.uint64(cuda.grid(1)), np.uint64(cuda.gridsize(1))
    bad = _FAKE_QUANTIZE(x, first, np.uint64(x.size), step, (scale, offset, low, high), out)
    if bad:
        cuda.atomic.add(nans, 0, bad)


@kernel
def _dequantize(q, scale, offset, out):
    """Fill in float32 (n,) of int8 (n,)."""
    first, step = np.uint64(cuda.grid(1)), np.uint64(cuda.gridsize(1))
    _DEQUANTIZE(q, first, np.uint64(q.size), step, (scale, offset), out)


@kernel
def _requantize(acc, inner, lanes, scales, scale, offset, low, high, out):
    """Requantize rows of `inner` sums, each by so many threads of a block; see `lanes`."""
    a_block = cuda.blockDim.x // lanes
    step, lane = np.uint64(lanes), np.uint64(cuda.threadIdx.x % lanes)
    row = cuda.blockIdx.x * a_block + cuda.threadIdx.x // lanes
    while row * inner < acc.size:
        factor = scales[row % scales.size]
        end, first = np.uint64(min((row + 1) * inner, acc.size)), np.uint64(row * inner) + lane
        _REQUANTIZE(acc, first, end, step, (factor, scale, offset, low, high), out)
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

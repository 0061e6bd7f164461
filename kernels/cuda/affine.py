"""Quantize, dequantize, fake-quantize, requantize: one pass over memory."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from kernels.cuda.arrays import empty, flat, is_on_device, on_device, shaped, zeros
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
from kernels.params import ChannelParams, QuantParams, format_numbers

__all__ = ["dequantize", "fake_quantize", "lanes", "quantize", "requantize", "steps"]

Params = QuantParams | ChannelParams

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
    scale, offset, _, _ = numbers
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
def _dequantize(q, scale, offset, low, high, out):
    """Fill in float32 (n,) of int8 or uint8 (n,)."""
    first, step = np.uint64(cuda.grid(1)), np.uint64(cuda.gridsize(1))
    _DEQUANTIZE(q, first, np.uint64(q.size), step, (scale, offset, low, high), out)


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


def by_rows(streamed: Any) -> Any:
    """Return a function that streams rows, each with the scale and offset of its channel.

    Parameters
    ----------
    streamed : device function
        Of `kernels.cuda.block.stream`.

    Returns
    -------
    device function
        ``(x, inner, lanes, scales, offsets, low, high, out)``: rows of `inner` values, each by so
        many threads of a block; returns how many counted.
    """

    @device_jit
    def rows(x, inner, lanes, scales, offsets, low, high, out):
        """Take this thread's part of the rows."""
        a_block, counted = cuda.blockDim.x // lanes, 0
        step, lane = np.uint64(lanes), np.uint64(cuda.threadIdx.x % lanes)
        row = cuda.blockIdx.x * a_block + cuda.threadIdx.x // lanes
        while row * inner < x.size:
            c = row % scales.size
            numbers = scales[c], offsets[c], low, high
            end, first = np.uint64((row + 1) * inner), np.uint64(row * inner) + lane
            counted += streamed(x, first, end, step, numbers, out)
            row += cuda.gridDim.x * a_block
        return counted

    return rows


_QUANTIZE_ROWS, _FAKE_QUANTIZE_ROWS = by_rows(_QUANTIZE), by_rows(_FAKE_QUANTIZE)
_DEQUANTIZE_ROWS = by_rows(_DEQUANTIZE)


@kernel
def _quantize_rows(x, inner, lanes, scales, offsets, low, high, out, nans):
    """Fill in int8 of float32 rows; add how many are NaN to ``nans[0]``, int64."""
    bad = _QUANTIZE_ROWS(x, inner, lanes, scales, offsets, low, high, out)
    if bad:
        cuda.atomic.add(nans, 0, bad)


@kernel
def _fake_quantize_rows(x, inner, lanes, scales, offsets, low, high, out, nans):
    """Fill in the values that the integers of rows stand for; add their NaN to ``nans[0]``."""
    bad = _FAKE_QUANTIZE_ROWS(x, inner, lanes, scales, offsets, low, high, out)
    if bad:
        cuda.atomic.add(nans, 0, bad)


@kernel
def _dequantize_rows(q, inner, lanes, scales, offsets, low, high, out):
    """Fill in float32 of rows of int8 or uint8."""
    _DEQUANTIZE_ROWS(q, inner, lanes, scales, offsets, low, high, out)


def lanes(inner: int) -> int:
    """Return how many threads share a row: four values each, a power of two at most a block.

    Threads of short rows would idle if a row took a whole block.
    """
    return min(1 << max(-(-inner // 4) - 1, 0).bit_length(), THREADS)


def _work(x: Any, params: Params, dtype: type) -> tuple[bool, int, tuple[Any, ...]]:
    """Return whether it goes by rows, how many blocks that takes, and what tells of the format."""
    numbers = format_numbers(params, dtype)
    size = prod(x.shape)
    if isinstance(params, QuantParams):
        return False, streams(size), numbers
    inner = prod(x.shape[params.axis % len(x.shape) + 1 :])
    each = lanes(inner)
    scales, offsets, low, high = numbers
    blocks = streams(-(-size // inner) * each * 4)
    return True, blocks, (inner, each, on_device(scales), on_device(offsets), low, high)


def _target(x: Any, dtype: type, out: Any) -> Any:
    """Return the device array of one axis that a kernel fills."""
    return empty(prod(x.shape), dtype) if out is None or not is_on_device(out) else flat(out)


def _finished(filled: Any, x: Any, out: Any) -> Any:
    """Return what a kernel has filled where its result belongs."""
    if out is None:
        return shaped(filled, x)
    if filled.size and not is_on_device(out):
        filled.copy_to_host(out.reshape(-1))
    return out


def _without_nan(
    functions: Any, x: Any, params: Params, dtype: type, stored: type, out: Any
) -> Any:
    """Run a kernel that counts NaN; refuse the data if there are any."""
    target = _target(x, stored, out)
    if target.size:
        nans = zeros(1, np.int64)
        rows, blocks, numbers = _work(x, params, dtype)
        launch(functions[rows], blocks, THREADS, flat(x), *numbers, target, nans)
        bad = int(nans.copy_to_host()[0])
        if bad:
            raise ValueError(f"x holds NaN ({bad} of them), which has no quantized value")
    return _finished(target, x, out)


def quantize(x: Any, params: Params, dtype: type = np.int8, out: Any = None) -> Any:
    """See `kernels.quantize`."""
    return _without_nan((_quantize, _quantize_rows), x, params, dtype, dtype, out)


def fake_quantize(x: Any, params: Params, out: Any = None) -> Any:
    """See `kernels.fake_quantize`."""
    functions = _fake_quantize, _fake_quantize_rows
    return _without_nan(functions, x, params, np.int8, np.float32, out)


def dequantize(q: Any, params: Params, out: Any = None) -> Any:
    """See `kernels.dequantize`."""
    target, source = _target(q, np.float32, out), flat(q)
    if target.size:
        rows, blocks, numbers = _work(q, params, source.dtype.type)
        function = (_dequantize, _dequantize_rows)[rows]
        launch(function, blocks, THREADS, source, *numbers, target)
    return _finished(target, q, out)


def requantize(
    acc: Any, scales: np.ndarray, params: QuantParams, dtype: type = np.int8, out: Any = None
) -> Any:
    """See `kernels.requantize`."""
    target = _target(acc, dtype, out)
    if target.size:
        inner = prod(acc.shape[2:]) if scales.size > 1 else _PIECE
        each = lanes(inner)
        blocks = streams(-(-target.size // inner) * each * 4)
        sums, factors = flat(acc), on_device(scales)
        numbers = format_numbers(params, dtype)
        launch(_requantize, blocks, THREADS, sums, inner, each, factors, *numbers, target)
    return _finished(target, acc, out)

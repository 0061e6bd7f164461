"""ULQ's forward and backward: one pass each; a block sums its share in a fixed order."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from kernels.cuda.arrays import empty, flat, shaped
from kernels.cuda.block import stream, sum_block
from kernels.cuda.jit import (
    THREADS,
    add,
    cuda,
    device_jit,
    grid,
    kernel,
    launch,
    mul,
    round_half_away,
    round_half_even,
    streams,
    sub,
)
from kernels.ulq import UlqGrid

__all__ = ["backward", "forward"]

_ZERO = np.float32(0)
#: Of the backward pass: values of a thread, at least, and blocks of a multiprocessor, which
#: are all resident at once and leave few sums to add.
_AT_ONCE, _BLOCKS = 4, 4


@device_jit
def _fake(v, scale, low, high):
    """Fake-quantize a value; NaN stays NaN."""
    v = low if v < low else v
    v = high if v > high else v
    return mul(round_half_even(v / scale), scale)


@device_jit
def _put(v, numbers, out, i):
    """Store a fake-quantized value, and count none."""
    out[i] = _fake(v, *numbers)
    return False


_PUT = stream(_put)


@kernel
def _forward(x, scale, low, high, out):
    """Fill in the fake-quantized values of x, float32 (n,)."""
    first, step = np.uint64(cuda.grid(1)), np.uint64(cuda.gridsize(1))
    _PUT(x, first, np.uint64(x.size), step, (scale, low, high), out)


@device_jit
def _shares(v, g, scale, low, high, edge, steps):
    """Return dx of a value, and what it adds to the gradients of the range's ends."""
    above, below = np.float32(v > high), np.float32(v < low)
    inside = add(above, below) == _ZERO
    w = v / scale
    d = sub(round_half_away(w), w) / steps if inside else edge
    return g if inside else _ZERO, mul(g, add(d, above)), mul(g, sub(below, d))


@kernel
def _backward(x, gradient, scale, low, high, edge, steps, out, sums):
    """Fill in dx, float32 (n,), and what each block adds to the ends, float64 (blocks, 2)."""
    by_max = cuda.shared.array(THREADS, np.float64)
    by_min = cuda.shared.array(THREADS, np.float64)
    t = cuda.threadIdx.x
    n, step, i = np.uint64(x.size), np.uint64(cuda.gridsize(1)), np.uint64(cuda.grid(1))
    to_max, to_min = 0.0, 0.0
    while i + step < n:
        j = i + step
        v, w, g, h = x[i], x[j], gradient[i], gradient[j]
        out[i], first, second = _shares(v, g, scale, low, high, edge, steps)
        out[j], third, fourth = _shares(w, h, scale, low, high, edge, steps)
        to_max += np.float64(first) + np.float64(third)
        to_min += np.float64(second) + np.float64(fourth)
        i = j + step
    if i < n:
        out[i], first, second = _shares(x[i], gradient[i], scale, low, high, edge, steps)
        to_max += np.float64(first)
        to_min += np.float64(second)
    by_max[t], by_min[t] = to_max, to_min
    sum_block(by_max, t, THREADS)
    sum_block(by_min, t, THREADS)
    if t == 0:
        sums[cuda.blockIdx.x, 0], sums[cuda.blockIdx.x, 1] = by_max[0], by_min[0]


def forward(x: Any, ulq: UlqGrid) -> Any:
    """See `kernels.ulq_forward`."""
    out = empty(prod(x.shape), np.float32)
    if out.size:
        ends = np.float32(ulq.scale), ulq.low, ulq.high
        launch(_forward, streams(out.size), THREADS, flat(x), *ends, out)
    return shaped(out, x)


def backward(x: Any, gradient: Any, ulq: UlqGrid) -> tuple[Any, float, float]:
    """See `kernels.ulq_backward`."""
    out = empty(prod(x.shape), np.float32)
    if not out.size:
        return shaped(out, x), 0.0, 0.0
    blocks = grid(-(-out.size // _AT_ONCE), THREADS, _BLOCKS)
    sums = empty((blocks, 2), np.float64)
    launch(
        _backward,
        blocks,
        THREADS,
        flat(x),
        flat(gradient),
        np.float32(ulq.scale),
        ulq.low,
        ulq.high,
        np.float32(ulq.edge),
        np.float32(ulq.steps),
        out,
        sums,
    )
    by_max, by_min = sums.copy_to_host().sum(axis=0)
    return shaped(out, x), float(by_max), float(by_min)

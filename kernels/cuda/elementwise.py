"""What nets that stay on the device need beside the operations: maps, sums, moves of float32.

Each function takes and returns device arrays in C order. A kernel strides over its data, one
value a thread at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from kernels.cuda.arrays import empty, on_device, on_host
from kernels.cuda.jit import THREADS, cuda, device_jit, grid, kernel, launch

__all__ = [
    "MAPS",
    "across_channels",
    "affine",
    "combine",
    "join",
    "map_values",
    "on_device",
    "on_host",
    "part",
    "permute",
    "prelu",
    "softmax",
]

_ZERO, _ONE, _SIX = np.float32(0), np.float32(1), np.float32(6)


@device_jit
def _leaky(v, a, b):
    """Return v, times a if below zero; NaN stays."""
    return v if v > _ZERO or v != v else v * a


@device_jit
def _leaky6(v, a, b):
    """Return what `_leaky` does, at most 6."""
    return min(_leaky(v, a, b), _SIX) if v == v else v


@device_jit
def _clip(v, a, b):
    """Return v between a and b; NaN stays."""
    return min(max(v, a), b) if v == v else v


@device_jit
def _sigmoid(v, a, b):
    """Return ``1 / (1 + exp(-v))``."""
    return _ONE / (_ONE + math.exp(-v))


@device_jit
def _tanh(v, a, b):
    """Return ``tanh(v)``."""
    return math.tanh(v)


@device_jit
def _elu(v, a, b):
    """Return v, or ``a * (exp(v) - 1)`` if below zero."""
    return v if v > _ZERO else a * math.expm1(v)


@device_jit
def _abs(v, a, b):
    """Return ``|v|``."""
    return math.fabs(v)


@device_jit
def _power(v, a, b):
    """Return ``v ** a``."""
    return math.pow(v, a)


@device_jit
def _exp(v, a, b):
    """Return ``exp(v * a + b)``."""
    return math.exp(v * a + b)


@device_jit
def _log(v, a, b):
    """Return ``log(v) * a``."""
    return math.log(v) * a


@device_jit
def _bnll(v, a, b):
    """Return ``log(1 + exp(v))``, without overflow."""
    return max(v, _ZERO) + math.log1p(math.exp(-math.fabs(v)))


@device_jit
def _swish(v, a, b):
    """Return ``v * sigmoid(a * v)``."""
    return v / (_ONE + math.exp(-v * a))


@device_jit
def _threshold(v, a, b):
    """Return 1 if v is above a, else 0."""
    return _ONE if v > a else _ZERO


@device_jit
def _linear(v, a, b):
    """Return ``v * a + b``."""
    return v * a + b


def _map_kernel(function: Any) -> Any:
    """Return the kernel that maps every value by a function of it and two numbers."""

    @kernel
    def map_kernel(x, a, b, out):
        """Fill in the map of each value, float32 (n,)."""
        for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
            out[i] = np.float32(function(x[i], a, b))

    return map_kernel


#: Maps of each value, by name, with the numbers that they take.
MAPS = {
    "abs": _map_kernel(_abs),
    "bnll": _map_kernel(_bnll),
    "clip": _map_kernel(_clip),  # low, high
    "elu": _map_kernel(_elu),  # alpha
    "exp": _map_kernel(_exp),  # of v * a + b
    "leaky": _map_kernel(_leaky),  # slope
    "leaky6": _map_kernel(_leaky6),  # slope; at most 6
    "linear": _map_kernel(_linear),  # v * a + b
    "log": _map_kernel(_log),  # times a
    "power": _map_kernel(_power),  # exponent
    "sigmoid": _map_kernel(_sigmoid),
    "swish": _map_kernel(_swish),  # beta
    "tanh": _map_kernel(_tanh),
    "threshold": _map_kernel(_threshold),  # least
}


@kernel
def affine_kernel(x, scale, shift, inner, out):
    """``y = x * scale[c] + shift[c]``; channels repeat every ``scale.size * inner`` values."""
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        c = (i // inner) % scale.size
        out[i] = x[i] * scale[c] + shift[c]


@kernel
def prelu_kernel(x, slope, inner, out):
    """``y = x`` where it is positive, else ``x * slope[c]``."""
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        v = x[i]
        out[i] = v if v > np.float32(0) else v * slope[(i // inner) % slope.size]


@kernel
def combine_kernel(x, y, kind, a, b, out):
    """Sum ``a x + b y`` (0), product (1) or maximum (2) of two arrays."""
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        if kind == 0:
            out[i] = a * x[i] + b * y[i]
        elif kind == 1:
            out[i] = x[i] * y[i]
        else:
            out[i] = x[i] if x[i] > y[i] or x[i] != x[i] else y[i]


@kernel
def softmax_kernel(x, classes, inner, out):
    """Softmax over `classes` values that lie `inner` apart, shifted by their maximum."""
    for i in range(cuda.grid(1), x.size // classes, cuda.gridsize(1)):
        begin = (i // inner) * classes * inner + i % inner
        top = x[begin]
        for c in range(1, classes):
            top = max(top, x[begin + c * inner])
        total = np.float32(0)
        for c in range(classes):
            e = np.float32(math.exp(x[begin + c * inner] - top))
            out[begin + c * inner] = e
            total += e
        for c in range(classes):
            out[begin + c * inner] = out[begin + c * inner] / total


@kernel
def copy_kernel(x, length, x_line, x_begin, y_line, y_begin, out):
    """Copy `length` values of each line of x to the lines of out."""
    for i in range(cuda.grid(1), (x.size // x_line) * length, cuda.gridsize(1)):
        line = i // length
        at = i % length
        out[line * y_line + y_begin + at] = x[line * x_line + x_begin + at]


@kernel
def permute_kernel(x, sizes, strides, out):
    """Write the axes in another order: `sizes` of out, and what a step along them is in x."""
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        rest = i
        at = 0
        for axis in range(sizes.size - 1, -1, -1):
            at += (rest % sizes[axis]) * strides[axis]
            rest //= sizes[axis]
        out[i] = x[at]


@kernel
def lrn_kernel(x, channels, inner, half, alpha, beta, k, out):
    """Divide by ``(k + alpha * sum of squares) ** beta`` over the channels around each."""
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        c = (i // inner) % channels
        total = np.float32(0)
        for other in range(max(c - half, 0), min(c + half + 1, channels)):
            v = x[i + (other - c) * inner]
            total += v * v
        out[i] = x[i] * math.pow(k + alpha * total, -beta)


def _run(function: Any, x: Any, *arguments: Any, count: int | None = None, out: Any) -> Any:
    count = out.size if count is None else count
    if count:
        launch(function, grid(count), THREADS, x, *arguments, out.reshape(out.size))
    return out


def _flat(x: Any) -> Any:
    return x.reshape(x.size)


def map_values(x: Any, name: str, a: float = 0.0, b: float = 0.0) -> Any:
    """Return a map of each value, see `MAPS`."""
    return _run(MAPS[name], _flat(x), np.float32(a), np.float32(b), out=empty(x.shape, np.float32))


def affine(x: Any, scale: Any, shift: Any, axis: int) -> Any:
    """Return ``x * scale + shift``, whose entries run along the axes of x from `axis` on."""
    inner = _inner(x.shape, axis, scale.size)
    out = empty(x.shape, np.float32)
    return _run(affine_kernel, _flat(x), _flat(scale), _flat(shift), inner, out=out)


def prelu(x: Any, slope: Any) -> Any:
    """Return PReLU with one slope, or one for each channel."""
    inner = _inner(x.shape, 1, slope.size)
    return _run(prelu_kernel, _flat(x), _flat(slope), inner, out=empty(x.shape, np.float32))


def _inner(shape: tuple[int, ...], axis: int, entries: int) -> int:
    """Return how many values in a row share an entry."""
    end = axis
    while prod(shape[axis:end]) < entries:
        end += 1
    return max(prod(shape[end:]), 1)


def combine(xs: Sequence[Any], kind: str, coefficients: Sequence[float] = ()) -> Any:
    """Return the sum (with coefficients), product or maximum of some arrays of one shape."""
    code = ("sum", "prod", "max").index(kind)
    coefficients = list(coefficients) or [1.0] * len(xs)
    total, first = xs[0], np.float32(coefficients[0])
    for x, c in zip(xs[1:], coefficients[1:], strict=True):
        out = empty(x.shape, np.float32)
        total = _run(combine_kernel, _flat(total), _flat(x), code, first, np.float32(c), out=out)
        first = np.float32(1)
    return total


def softmax(x: Any, axis: int) -> Any:
    """Return the softmax along an axis."""
    classes, inner = x.shape[axis], max(prod(x.shape[axis + 1 :]), 1)
    out = empty(x.shape, np.float32)
    return _run(softmax_kernel, _flat(x), classes, inner, count=x.size // classes, out=out)


def join(xs: Sequence[Any], axis: int) -> Any:
    """Return arrays joined along an axis."""
    sizes = [x.shape[axis] for x in xs]
    first = xs[0].shape
    out = empty((*first[:axis], sum(sizes), *first[axis + 1 :]), np.float32)
    inner = prod(first[axis + 1 :])
    begin = 0
    for x, size in zip(xs, sizes, strict=True):
        line = size * inner
        _run(copy_kernel, _flat(x), line, line, 0, sum(sizes) * inner, begin * inner,
             count=x.size, out=out)  # fmt: skip
        begin += size
    return out


def part(x: Any, axis: int, begin: int, end: int) -> Any:
    """Return the part of an array between two places of an axis."""
    inner = prod(x.shape[axis + 1 :])
    out = empty((*x.shape[:axis], end - begin, *x.shape[axis + 1 :]), np.float32)
    length = (end - begin) * inner
    lines = x.shape[axis] * inner
    return _run(copy_kernel, _flat(x), length, lines, begin * inner, length, 0, out=out)


def permute(x: Any, order: Sequence[int]) -> Any:
    """Return an array with its axes in another order."""
    steps = [prod(x.shape[axis + 1 :]) for axis in range(x.ndim)]
    sizes = np.array([x.shape[axis] for axis in order], np.int64)
    strides = np.array([steps[axis] for axis in order], np.int64)
    out = empty(tuple(int(n) for n in sizes), np.float32)
    return _run(permute_kernel, _flat(x), on_device(sizes), on_device(strides), out=out)


def across_channels(x: Any, size: int, alpha: float, beta: float, k: float) -> Any:
    """Return LRN across channels, over `size` of them."""
    inner = max(prod(x.shape[2:]), 1)
    numbers = (np.float32(v) for v in (alpha / size, beta, k))
    out = empty(x.shape, np.float32)
    return _run(lrn_kernel, _flat(x), x.shape[1], inner, size // 2, *numbers, out=out)

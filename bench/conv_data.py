"""Operands of a convolution that fill the range of int8, and its exact result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

import kernels
from bench.shapes import ConvShape

__all__ = ["X_OFFSET", "X_SCALE", "ConvData", "conv_data", "exact_sums", "steps_of", "wrong_share"]

X_SCALE = np.float32(0.02)
#: Data after a ReLU: its zero is the lowest step, 0 where peers take unsigned data.
X_OFFSET = -128

#: How near the middle of two steps, in steps, a value may be rounded either way.
_TIE = 1e-3


@dataclass(frozen=True)
class ConvData:
    """Operands of one convolution: integers with their scales, and the floats they stand for."""

    shape: ConvShape
    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray
    xq: np.ndarray
    wq: np.ndarray
    bias_q: np.ndarray
    w_scale: np.ndarray
    result: kernels.QuantParams

    @property
    def geometry(self) -> dict[str, Any]:
        """As our functions take it."""
        s = self.shape
        return {"stride": s.stride, "pad": s.pad, "group": s.group}

    @property
    def onnx_geometry(self) -> dict[str, Any]:
        """As the attributes of an ONNX node."""
        s = self.shape
        return {"strides": [s.stride] * 2, "pads": [s.pad] * 4, "group": s.group}

    @property
    def unsigned(self) -> np.ndarray:
        """The data shifted to 0..255."""
        return (self.xq.astype(np.int16) + 128).astype(np.uint8)

    @cached_property
    def exact(self) -> np.ndarray:
        """The real values of the result, in its steps, before rounding; float64."""
        sums = exact_sums(self) + self.bias_q[:, None, None]
        step = np.float64(X_SCALE) * self.w_scale / self.result.scale
        steps = sums * step[:, None, None] + self.result.offset
        return np.clip(steps, self.result.low, self.result.high)


def conv_data(shape: ConvShape, batch: int) -> ConvData:
    """Return operands over all of the range: -128..127 for data, -127..127 for weights."""
    rng = np.random.default_rng(2)
    per = shape.channels // shape.group
    xq = rng.integers(-128, 128, (batch, shape.channels, shape.size, shape.size), np.int8)
    wq = rng.integers(-127, 128, (shape.outs, per, shape.kernel, shape.kernel), np.int8)
    bias_q = rng.integers(-5000, 5001, shape.outs, np.int32)
    w_scale = rng.uniform(0.0005, 0.001, shape.outs).astype(np.float32)
    x = (xq.astype(np.float32) - X_OFFSET) * X_SCALE
    w = wq.astype(np.float32) * w_scale[:, None, None, None]
    # four standard deviations of a sum of such products fill the range
    spread = np.sqrt(float(np.square(x).mean()) * float(np.square(w).mean()) * wq[0].size)
    result = kernels.QuantParams(float(np.float32(4 * spread / 128)), 3)
    bias = bias_q.astype(np.float32) * (X_SCALE * w_scale)
    return ConvData(shape, x, w, bias, xq, wq, bias_q, w_scale, result)


def exact_sums(d: ConvData) -> np.ndarray:
    """Return the sums of products without bias, (N, O, H', W').

    Tap by tap in float64, which holds every integer below 2**53.
    """
    s = d.shape
    n, size = len(d.xq), s.out_size
    padded = np.zeros((n, s.channels, s.size + 2 * s.pad, s.size + 2 * s.pad))
    inside = slice(s.pad, s.pad + s.size)
    padded[:, :, inside, inside] = d.xq.astype(np.float64) - X_OFFSET
    w = d.wq.astype(np.float64).reshape(s.group, s.outs // s.group, -1, s.kernel, s.kernel)
    sums = np.zeros((n, s.group, s.outs // s.group, size * size))
    reach = (size - 1) * s.stride + 1
    for i in range(s.kernel):
        for j in range(s.kernel):
            met = padded[:, :, i : i + reach : s.stride, j : j + reach : s.stride]
            sums += w[..., i, j] @ met.reshape(n, s.group, -1, size * size)
    return sums.reshape(n, s.outs, size, size)


def steps_of(d: ConvData, its: np.ndarray) -> np.ndarray:
    """Return the int8 steps that a result stands for, as int16.

    Stored are int8 values, unsigned ones (plus 128), or int16 ones less the offset.
    """
    add = {"uint8": -128, "int16": d.result.offset}.get(its.dtype.name, 0)
    return its.astype(np.int16) + np.int16(add)


def wrong_share(d: ConvData, its: np.ndarray) -> float | None:
    """Return the share of outputs that are not the exact real value rounded to a step.

    Beside the middle of two steps (within 0.001 of a step) both are right. A float result has
    no such share.
    """
    if its.dtype.kind == "f":
        return None
    return float((np.abs(steps_of(d, its) - d.exact) > 0.5 + _TIE).mean())

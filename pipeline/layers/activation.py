"""Layers that map each value on its own: ReLU and its kin, powers and exponentials."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from caffeio.graph import Layer
from pipeline.layers.base import LayerType, Shape
from pipeline.layers.check import arity, axis_index, blob, expect_blobs, need

__all__ = ["TYPES", "leaky", "natural_log", "same", "sigmoid", "softmax"]

_f32 = np.float32


def same(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """Shape rule of layers with one bottom and one top alike."""
    arity(layer, shapes)
    return (shapes[0],)


def neuron(
    function: Callable[[Layer, np.ndarray], np.ndarray],
    check: Callable[[Layer], None] | None = None,
) -> LayerType:
    """Make a layer type of a function of one array; `check` looks at the parameters."""

    def shapes(layer: Layer, bottoms: Sequence[Shape]) -> tuple[Shape, ...]:
        if check is not None:
            check(layer)
        return same(layer, bottoms)

    def forward(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
        x = bottoms[0]
        # NumPy makes numbers, not arrays, of what has no axes
        return (function(layer, x) if x.ndim else function(layer, x.reshape(1)).reshape(()),)

    return LayerType(shapes, forward)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return ``1 / (1 + exp(-x))`` in Caffe's form, which cannot overflow."""
    y = np.tanh(x * _f32(0.5))
    y *= _f32(0.5)
    y += _f32(0.5)
    return y


def leaky(x: np.ndarray, slope: float | np.ndarray) -> np.ndarray:
    """Return ``max(x, 0) + slope * min(x, 0)``."""
    y = np.maximum(x, _f32(0))
    if np.any(slope):
        y += np.asarray(slope, dtype=_f32) * np.minimum(x, _f32(0))
    return y


def _bnll(layer: Layer, x: np.ndarray) -> np.ndarray:
    return np.maximum(x, _f32(0)) + np.log1p(np.exp(-np.abs(x)))


def _clip(layer: Layer, x: np.ndarray) -> np.ndarray:
    p = layer.param.clip_param
    return np.clip(x, _f32(p.min), _f32(p.max))


def _check_clip(layer: Layer) -> None:
    p = layer.param.clip_param
    need(layer, p.HasField("min") and p.HasField("max"), "clip_param needs min and max")
    need(layer, p.min <= p.max, f"clip_param min {p.min:g} is above max {p.max:g}")


def _elu(layer: Layer, x: np.ndarray) -> np.ndarray:
    alpha = _f32(layer.param.elu_param.alpha)
    return np.maximum(x, _f32(0)) + alpha * np.expm1(np.minimum(x, _f32(0)))


def natural_log(layer: Layer, base: float) -> float:
    """Natural logarithm of a base; -1 stands for e."""
    if base == -1:
        return 1.0
    need(layer, base > 0, f"base {base:g} must be positive (or -1 for e)")
    return math.log(base)


def _exp(layer: Layer, x: np.ndarray) -> np.ndarray:
    p = layer.param.exp_param
    log_base = natural_log(layer, p.base)
    y = np.exp(x * _f32(log_base * p.scale))
    return y * _f32(math.exp(log_base * p.shift)) if p.shift else y


def _check_log(layer: Layer) -> None:
    base = layer.param.log_param.base
    need(layer, natural_log(layer, base) != 0, "base 1 has no logarithm; give another base")


def _log(layer: Layer, x: np.ndarray) -> np.ndarray:
    p = layer.param.log_param
    return np.log(x * _f32(p.scale) + _f32(p.shift)) * _f32(1 / natural_log(layer, p.base))


def _power(layer: Layer, x: np.ndarray) -> np.ndarray:
    p = layer.param.power_param
    if p.power * p.scale == 0:
        # As Caffe: the result does not depend on x, not even on a NaN in it.
        value = 1.0 if p.power == 0 else float(np.power(_f32(p.shift), _f32(p.power)))
        return np.full_like(x, value)
    y = x * _f32(p.scale)
    y += _f32(p.shift)
    return y if p.power == 1 else np.power(y, _f32(p.power), out=y)


def _prelu_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    need(layer, len(shapes[0]) >= 2, f"bottom has shape {shapes[0]}; PReLU needs a channel axis")
    shared = layer.param.prelu_param.channel_shared
    expect_blobs(layer, slope=() if shared else (shapes[0][1],))
    return (shapes[0],)


def _prelu(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    x = bottoms[0]
    return (leaky(x, blob(layer, 0).reshape((-1,) + (1,) * (x.ndim - 2))),)


def _softmax_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    axis_index(layer, layer.param.softmax_param.axis, len(shapes[0]))
    return (shapes[0],)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """Return the softmax along one axis, shifted by its maximum as in Caffe."""
    y = x - x.max(axis=axis, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y


def _threshold(layer: Layer, x: np.ndarray) -> np.ndarray:
    return (x > _f32(layer.param.threshold_param.threshold)).astype(_f32)


def _relu(layer: Layer, x: np.ndarray) -> np.ndarray:
    return leaky(x, layer.param.relu_param.negative_slope)


def _relu6(layer: Layer, x: np.ndarray) -> np.ndarray:
    slope = layer.param.relu6_param.negative_slope
    return np.minimum(leaky(x, slope), _f32(6))


def _swish(layer: Layer, x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x * _f32(layer.param.swish_param.beta))


TYPES: dict[str, LayerType] = {
    "AbsVal": neuron(lambda layer, x: np.abs(x)),
    "BNLL": neuron(_bnll),
    "Clip": neuron(_clip, _check_clip),
    "Dropout": neuron(lambda layer, x: x),
    "ELU": neuron(_elu),
    "Exp": neuron(
        _exp,
        lambda layer: need(
            layer, math.isfinite(natural_log(layer, layer.param.exp_param.base)), "bad base"
        ),
    ),
    "Log": neuron(_log, _check_log),
    "Power": neuron(_power),
    "PReLU": LayerType(_prelu_shapes, _prelu),
    "ReLU": neuron(_relu),
    "ReLU6": neuron(_relu6),
    "Sigmoid": neuron(lambda layer, x: sigmoid(x)),
    "Softmax": LayerType(
        _softmax_shapes,
        lambda layer, bottoms, device: (softmax(bottoms[0], layer.param.softmax_param.axis),),
    ),
    "Swish": neuron(_swish),
    "TanH": neuron(lambda layer, x: np.tanh(x)),
    "Threshold": neuron(_threshold),
}

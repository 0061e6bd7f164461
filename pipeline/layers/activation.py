"""Layers that map each value on its own: ReLU and its kin, powers and exponentials."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from caffeio.graph import Layer
from pipeline.layers.base import (
    Factors,
    LayerType,
    Shape,
    Sign,
    Step,
    always,
    any_sign,
    keeps_factors,
    keeps_sign,
    no_factors,
    no_identity,
    no_step,
    not_negative,
)
from pipeline.layers.check import arity, axis_index, blob, expect_blobs, need
from pipeline.layers.folding import Affine

__all__ = ["TYPES", "dropout_scale", "leaky", "natural_log", "same", "sigmoid", "softmax"]

_f32 = np.float32


def same(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """Shape rule of layers with one bottom and one top alike."""
    arity(layer, shapes)
    return (shapes[0],)


def neuron(
    function: Callable[[Layer, np.ndarray], np.ndarray],
    sign: Callable[[Layer], Sign],
    check: Callable[[Layer], None] | None = None,
    *,
    step: Callable[[Layer, Sequence[Shape], Shape], Step | None] = no_step,
    identity: Callable[[Layer], bool] = no_identity,
    factors: Callable[[Layer, int], Factors] = no_factors,
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

    return LayerType(shapes, forward, always, sign, step=step, identity=identity, factors=factors)


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


def dropout_scale(layer: Layer) -> float:
    """Return what a Dropout layer multiplies by at inference.

    1, but in forks with ``scale_train: false``, whose training drops and does not scale.
    """
    p = layer.param.dropout_param
    return 1.0 if p.scale_train else float(_f32(1.0 - p.dropout_ratio))


def _dropout(layer: Layer, x: np.ndarray) -> np.ndarray:
    scale = dropout_scale(layer)
    return x if scale == 1 else x * _f32(scale)


def _dropout_step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step:
    scale = np.full(top[1], dropout_scale(layer))
    return Step("affine", affine=Affine(scale, np.zeros(top[1])))


def _mish(layer: Layer, x: np.ndarray) -> np.ndarray:
    return x * np.tanh(_bnll(layer, x))


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


def _clip_sign(layer: Layer) -> Sign:
    p = layer.param.clip_param
    if p.min >= 0:
        return Sign.NOT_NEGATIVE
    return Sign.KEPT if p.max >= 0 else Sign.ANY


def _rectified(slope: float) -> Sign:
    return Sign.KEPT if slope else Sign.NOT_NEGATIVE


def _relu_step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step:
    slope = layer.param.relu_param.negative_slope
    if slope == 0:
        return Step("apply", clamp=(0.0, math.inf))
    return Step("apply", slope=np.full(top[1], slope, _f32))


def _relu6_step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step | None:
    plain = layer.param.relu6_param.negative_slope == 0
    return Step("apply", clamp=(0.0, 6.0)) if plain else None


def _clip_factors(layer: Layer, rank: int) -> Factors:
    p = layer.param.clip_param
    return Factors("kept", p.min, p.max) if p.min <= 0 <= p.max else Factors()


def _clip_step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step:
    p = layer.param.clip_param
    return Step("apply", clamp=(p.min, p.max))


def _prelu_step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step:
    slopes = np.broadcast_to(layer.blobs[0].reshape(-1), (top[1],))
    return Step("apply", slope=np.ascontiguousarray(slopes))


TYPES: dict[str, LayerType] = {
    "AbsVal": neuron(lambda layer, x: np.abs(x), not_negative),
    "BNLL": neuron(_bnll, not_negative),
    "Clip": neuron(_clip, _clip_sign, _check_clip, step=_clip_step, factors=_clip_factors),
    "Dropout": neuron(
        _dropout,
        keeps_sign,
        step=_dropout_step,
        identity=lambda layer: dropout_scale(layer) == 1,
        factors=keeps_factors,
    ),
    "ELU": neuron(_elu, keeps_sign),
    "Exp": neuron(
        _exp,
        not_negative,
        lambda layer: need(
            layer, math.isfinite(natural_log(layer, layer.param.exp_param.base)), "bad base"
        ),
    ),
    "Log": neuron(_log, any_sign, _check_log),
    "Mish": neuron(_mish, keeps_sign),
    "Power": neuron(_power, any_sign),
    "PReLU": LayerType(
        _prelu_shapes, _prelu, always, keeps_sign, step=_prelu_step, factors=keeps_factors
    ),
    "ReLU": neuron(
        _relu,
        lambda layer: _rectified(layer.param.relu_param.negative_slope),
        step=_relu_step,
        factors=keeps_factors,
    ),
    "ReLU6": neuron(
        _relu6,
        lambda layer: _rectified(layer.param.relu6_param.negative_slope),
        step=_relu6_step,
        factors=lambda layer, rank: Factors("kept", high=6.0),
    ),
    "Sigmoid": neuron(lambda layer, x: sigmoid(x), not_negative),
    "Softmax": LayerType(
        _softmax_shapes,
        lambda layer, bottoms, device: (softmax(bottoms[0], layer.param.softmax_param.axis),),
        lambda layer, rank: layer.param.softmax_param.axis % rank != 0,
        not_negative,
        saturates=True,
    ),
    "Swish": neuron(_swish, keeps_sign),
    "TanH": neuron(lambda layer, x: np.tanh(x), keeps_sign),
    "Threshold": neuron(_threshold, not_negative),
}

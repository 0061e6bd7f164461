"""Layers that combine arrays value by value: Eltwise, Scale, Bias, Axpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import BiasParameter, EltwiseParameter, ScaleParameter
from pipeline.layers.base import (
    Factors,
    LayerType,
    Shape,
    Sign,
    Step,
    always,
    any_sign,
    keeps_sign,
)
from pipeline.layers.check import (
    arity,
    axis_index,
    blob,
    expect_blobs,
    fail,
    need,
    same_shape,
)
from pipeline.layers.folding import scale_affine

__all__ = ["TYPES", "factor_shape"]

_f32 = np.float32


def _eltwise_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(2, None))
    same_shape(layer, shapes)
    p = layer.param.eltwise_param
    need(
        layer,
        len(p.coeff) in (0, len(shapes)),
        f"eltwise_param has {len(p.coeff)} coeff for {len(shapes)} bottoms; give one for each",
    )
    need(
        layer, not p.coeff or p.operation == EltwiseParameter.SUM, "coeff is for operation SUM only"
    )
    return (shapes[0],)


def _eltwise(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    p = layer.param.eltwise_param
    if p.operation == EltwiseParameter.SUM:
        coeff = [_f32(c) for c in p.coeff] or [_f32(1)] * len(bottoms)
        y = bottoms[0] * coeff[0]
        for x, c in zip(bottoms[1:], coeff[1:], strict=True):
            y += x if c == 1 else c * x
        return (y,)
    combine = np.multiply if p.operation == EltwiseParameter.PROD else np.maximum
    y = combine(bottoms[0], bottoms[1])
    for x in bottoms[2:]:
        y = combine(y, x)
    return (y,)


def factor_shape(
    layer: Layer, shapes: Sequence[Shape], p: ScaleParameter | BiasParameter
) -> tuple[Shape, Shape]:
    """Return the shape of the factor, and the same shape made to broadcast over the bottom."""
    x = shapes[0]
    if len(shapes) == 2:
        factor = shapes[1]
        axis = axis_index(layer, p.axis, len(x)) if factor else 0
    else:
        axis = axis_index(layer, p.axis, len(x))
        need(layer, p.num_axes >= -1, f"num_axes {p.num_axes} must be at least -1")
        end = len(x) if p.num_axes == -1 else axis + p.num_axes
        need(
            layer,
            end <= len(x),
            f"axis {p.axis} and num_axes {p.num_axes} reach beyond the "
            f"{len(x)} axes of bottom '{layer.bottoms[0]}'",
        )
        factor = x[axis:end]
    if x[axis : axis + len(factor)] != factor:
        fail(
            layer,
            f"bottom '{layer.bottoms[1]}' has shape {factor}; from axis {axis} on, bottom "
            f"'{layer.bottoms[0]}' has {x[axis:]}: they must be equal",
        )
    return factor, factor + (1,) * (len(x) - axis - len(factor))


def _scale_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(1, 2))
    p = layer.param.scale_param
    factor, _ = factor_shape(layer, shapes, p)
    blob_shapes = {"scale": factor} if len(shapes) == 1 else {}
    if p.bias_term:
        blob_shapes["bias"] = factor
    expect_blobs(layer, **blob_shapes)
    return (shapes[0],)


def _scale(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    p = layer.param.scale_param
    _, spread = factor_shape(layer, [x.shape for x in bottoms], p)
    factor = bottoms[1] if len(bottoms) == 2 else layer.blobs[0]
    y = bottoms[0] * factor.reshape(spread)
    if p.bias_term:
        y += blob(layer, -1).reshape(spread)
    return (y,)


def _bias_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(1, 2))
    term, _ = factor_shape(layer, shapes, layer.param.bias_param)
    expect_blobs(layer, **({"bias": term} if len(shapes) == 1 else {}))
    return (shapes[0],)


def _bias(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    _, spread = factor_shape(layer, [x.shape for x in bottoms], layer.param.bias_param)
    term = bottoms[1] if len(bottoms) == 2 else layer.blobs[0]
    return (bottoms[0] + term.reshape(spread),)


def _axpy_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(3, 3))
    a, x, y = shapes
    need(
        layer,
        x == y,
        f"bottoms '{layer.bottoms[1]}' {x} and '{layer.bottoms[2]}' {y} must have the same shape",
    )
    need(
        layer,
        len(x) >= 2 and a in (x[:2], x[:2] + (1,) * (len(x) - 2)),
        f"bottom '{layer.bottoms[0]}' has shape {a}; it must hold one factor for each of the "
        f"first two axes of {x}",
    )
    return (x,)


def _axpy(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    a, x, y = bottoms
    return (a.reshape(x.shape[:2] + (1,) * (x.ndim - 2)) * x + y,)


def _eltwise_sign(layer: Layer) -> Sign:
    return Sign.KEPT if min(layer.param.eltwise_param.coeff, default=1) >= 0 else Sign.ANY


def _eltwise_factors(layer: Layer, rank: int) -> Factors:
    product = layer.param.eltwise_param.operation == EltwiseParameter.PROD
    return Factors() if product else Factors("kept")


def _eltwise_step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step | None:
    p = layer.param.eltwise_param
    plain = p.operation == EltwiseParameter.SUM and all(c == 1 for c in p.coeff)
    return Step("add") if plain and len(bottoms) == 2 else None


def _factors_per_image(p: ScaleParameter | BiasParameter, layer: Layer, rank: int) -> bool:
    """Whether factors are the same for every image, or each image brings its own."""
    over_batch = p.axis % rank == 0
    if len(layer.bottoms) == 2:
        return over_batch and not layer.blobs  # a bias blob would have the batch as an axis
    return not over_batch


def _scale_step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step | None:
    """Return an affine step if the layer's own blobs hold one factor for each channel."""
    if len(bottoms) != 1 or layer.param.scale_param.axis != 1 or not layer.blobs:
        return None
    if layer.blobs[0].shape != (top[1],):
        return None
    return Step("affine", affine=scale_affine(layer.blobs))


TYPES: dict[str, LayerType] = {
    "Axpy": LayerType(_axpy_shapes, _axpy, always, keeps_sign),
    "Bias": LayerType(
        _bias_shapes,
        _bias,
        lambda layer, rank: _factors_per_image(layer.param.bias_param, layer, rank),
        any_sign,
    ),
    "Eltwise": LayerType(
        _eltwise_shapes,
        _eltwise,
        always,
        _eltwise_sign,
        step=_eltwise_step,
        factors=_eltwise_factors,
    ),
    "Scale": LayerType(
        _scale_shapes,
        _scale,
        lambda layer, rank: _factors_per_image(layer.param.scale_param, layer, rank),
        any_sign,
        step=_scale_step,
    ),
}

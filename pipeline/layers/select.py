"""Layers that pick or reduce values: ArgMax, Reduction, BatchReindex, Filter."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import ReductionParameter
from pipeline.layers.base import LayerType, Shape, Sign, keeps_sign, never
from pipeline.layers.check import arity, axis_index, need

__all__ = ["TYPES"]


def _argmax_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    x, p = shapes[0], layer.param.argmax_param
    if p.HasField("axis"):
        axis = axis_index(layer, p.axis, len(x))
        choices = x[axis]
        top = (*x[:axis], p.top_k, *x[axis + 1 :])
    else:
        need(layer, len(x) >= 1, "the bottom has no axes")
        choices = prod(x[1:])
        top = (x[0], 2 if p.out_max_val else 1, p.top_k) + (1,) * (len(x) - 3)
    need(layer, 1 <= p.top_k <= choices, f"top_k {p.top_k} must be 1 to {choices}")
    return (top,)


def _argmax(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    x, p = bottoms[0], layer.param.argmax_param
    (top,) = _argmax_shapes(layer, [x.shape])
    by_axis = p.HasField("axis")
    values = np.moveaxis(x, p.axis, -1) if by_axis else x.reshape(len(x), -1)
    # Caffe sorts (value, index) pairs downwards: of equal values the last index comes first.
    backwards = np.argsort(-values[..., ::-1], axis=-1, kind="stable")[..., : p.top_k]
    index = values.shape[-1] - 1 - backwards
    best = np.take_along_axis(values, index, axis=-1)
    indices = index.astype(np.float32)
    if by_axis:
        return (np.ascontiguousarray(np.moveaxis(best if p.out_max_val else indices, -1, p.axis)),)
    return ((np.stack([indices, best], axis=1) if p.out_max_val else indices).reshape(top),)


def _reduction_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    axis = axis_index(layer, layer.param.reduction_param.axis, len(shapes[0]))
    return (shapes[0][:axis],)


def _reduction(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    x, p = bottoms[0], layer.param.reduction_param
    axis = p.axis % x.ndim
    values = x.reshape(*x.shape[:axis], prod(x.shape[axis:]))
    if p.operation == ReductionParameter.ASUM:
        values = np.abs(values)
    elif p.operation == ReductionParameter.SUMSQ:
        values = np.square(values)
    y = values.sum(axis=-1, dtype=np.float64)
    if p.operation == ReductionParameter.MEAN:
        y = y / values.shape[-1]
    return (np.asarray(y * p.coeff, dtype=np.float32),)


def _reindex_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(2, 2))
    need(
        layer,
        len(shapes[1]) == 1 and len(shapes[0]) >= 1,
        f"bottom '{layer.bottoms[1]}' has shape {shapes[1]}; it must be a list of indices into "
        f"the first axis of bottom '{layer.bottoms[0]}' {shapes[0]}",
    )
    return ((shapes[1][0], *shapes[0][1:]),)


def _reindex(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    x, index = bottoms[0], bottoms[1].astype(np.int64)
    if index.size and not (index.min() >= 0 and index.max() < len(x)):
        raise ValueError(
            f"bottom '{layer.bottoms[1]}' holds indices {index.min()} to "
            f"{index.max()}; the batch allows 0 to {len(x) - 1}"
        )
    return (x[index],)


def _filter_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    tops = len(shapes) - 1
    arity(layer, shapes, bottoms=(2, None), tops=(tops, tops))
    *items, selector = shapes
    need(
        layer,
        len(selector) >= 1 and prod(selector[1:]) == 1,
        f"the selector '{layer.bottoms[-1]}' has shape {selector}; it must hold one value for "
        "each item",
    )
    for name, shape in zip(layer.bottoms, items, strict=False):
        need(
            layer,
            shape[:1] == selector[:1],
            f"bottom '{name}' has shape {shape}; its first "
            f"axis must be that of the selector, {selector[0]}",
        )
    return tuple(items)


def _filter(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    chosen = np.flatnonzero(bottoms[-1])
    return tuple(x[chosen] for x in bottoms[:-1])


def _argmax_per_image(layer: Layer, rank: int) -> bool:
    p = layer.param.argmax_param
    return not p.HasField("axis") or p.axis % rank != 0


def _argmax_sign(layer: Layer) -> Sign:
    return Sign.KEPT if layer.param.argmax_param.out_max_val else Sign.NOT_NEGATIVE


def _reduction_sign(layer: Layer) -> Sign:
    p = layer.param.reduction_param
    if p.coeff < 0:
        return Sign.ANY
    squares = p.operation in (ReductionParameter.ASUM, ReductionParameter.SUMSQ)
    return Sign.NOT_NEGATIVE if squares else Sign.KEPT


TYPES: dict[str, LayerType] = {
    "ArgMax": LayerType(_argmax_shapes, _argmax, _argmax_per_image, _argmax_sign),
    "BatchReindex": LayerType(_reindex_shapes, _reindex, never, keeps_sign),
    "Filter": LayerType(_filter_shapes, _filter, never, keeps_sign, data_dependent=True),
    "Reduction": LayerType(
        _reduction_shapes,
        _reduction,
        lambda layer, rank: layer.param.reduction_param.axis % rank != 0,
        _reduction_sign,
    ),
}

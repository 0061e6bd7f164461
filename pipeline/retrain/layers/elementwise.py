"""Layers that combine tensors value by value: Eltwise, Scale, Bias, Axpy."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import EltwiseParameter
from pipeline.layers.elementwise import factor_shape
from pipeline.retrain.layers.base import BlobSpec, Context, Shape, TorchLayer
from pipeline.retrain.layers.common import bottom_shapes, filler_or

__all__ = ["TYPES"]


def _sum(bottoms: Sequence[Tensor], coeff: Sequence[float]) -> Tensor:
    y = bottoms[0] if coeff[0] == 1 else bottoms[0] * coeff[0]
    for x, c in zip(bottoms[1:], coeff[1:], strict=True):
        y = torch.add(y, x, alpha=c)
    return y


def _eltwise(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    p = layer.param.eltwise_param
    if p.operation == EltwiseParameter.SUM:
        return (_sum(bottoms, list(p.coeff) or [1.0] * len(bottoms)),)
    first, *others = bottoms
    if p.operation == EltwiseParameter.PROD:
        return (prod(others, start=first),)
    # As Caffe: of equal values the second bottom's is taken, but no later one's.
    y = torch.where(first > others[0], first, others[0])
    for x in others[1:]:
        y = torch.where(x > y, x, y)
    return (y,)


def _scale_blobs(layer: Layer, shapes: Sequence[Shape]) -> tuple[BlobSpec, ...]:
    p = layer.param.scale_param
    factor, _ = factor_shape(layer, shapes, p)
    scale = (BlobSpec(factor, filler_or(p, "filler", 1)),) if len(shapes) == 1 else ()
    return (*scale, BlobSpec(factor, p.bias_filler)) if p.bias_term else scale


def _scale(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    p, x = layer.param.scale_param, bottoms[0]
    _, spread = factor_shape(layer, bottom_shapes(bottoms), p)
    factor = (bottoms[1] if len(bottoms) == 2 else blobs[0]).reshape(spread)
    if p.bias_term:
        return (torch.addcmul(blobs[-1].reshape(spread), x, factor),)
    return (x * factor,)


def _bias_blobs(layer: Layer, shapes: Sequence[Shape]) -> tuple[BlobSpec, ...]:
    p = layer.param.bias_param
    term, _ = factor_shape(layer, shapes, p)
    return (BlobSpec(term, p.filler),) if len(shapes) == 1 else ()


def _bias(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    _, spread = factor_shape(layer, bottom_shapes(bottoms), layer.param.bias_param)
    term = bottoms[1] if len(bottoms) == 2 else blobs[0]
    return (bottoms[0] + term.reshape(spread),)


def _axpy(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    a, x, y = bottoms
    return (torch.addcmul(y, a.reshape(x.shape[:2] + (1,) * (x.ndim - 2)), x),)


TYPES: dict[str, TorchLayer] = {
    "Axpy": TorchLayer(_axpy),
    "Bias": TorchLayer(_bias, _bias_blobs),
    "Eltwise": TorchLayer(_eltwise),
    "Scale": TorchLayer(_scale, _scale_blobs),
}

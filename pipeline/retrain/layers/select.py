"""Layers that pick or reduce values, and those that only report: no gradient passes them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import ReductionParameter
from pipeline.retrain.layers.base import Context, TorchLayer
from pipeline.retrain.layers.common import indices, without_gradient

__all__ = ["TYPES"]


def _reduction(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    p, values = layer.param.reduction_param, bottoms[0].flatten(layer.param.reduction_param.axis)
    if p.operation == ReductionParameter.ASUM:
        values = values.abs()
    elif p.operation == ReductionParameter.SUMSQ:
        values = values.square()
    mean = p.operation == ReductionParameter.MEAN
    return ((values.mean(-1) if mean else values.sum(-1)) * p.coeff,)


def _reindex(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x = bottoms[0]
    return (x.index_select(0, indices(layer, bottoms, blobs, 1, len(x))),)


def _filter(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    *items, selector = bottoms
    chosen = selector.detach().reshape(-1).nonzero().squeeze(1)
    return tuple(x.index_select(0, chosen) for x in items)


TYPES: dict[str, TorchLayer] = {
    "Accuracy": without_gradient,
    "ArgMax": without_gradient,
    "BatchReindex": TorchLayer(_reindex),
    "DetectionOutput": without_gradient,
    "Filter": TorchLayer(_filter),
    "PriorBox": without_gradient,
    "Reduction": TorchLayer(_reduction),
    "Threshold": without_gradient,
}

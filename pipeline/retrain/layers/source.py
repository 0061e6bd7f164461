"""Layers without bottoms: inputs that the caller supplies, DummyData, and Parameter."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from caffeio.graph import SOURCE_TYPES, Layer
from pipeline.retrain.layers.base import BlobSpec, Context, Shape, TorchLayer
from pipeline.retrain.layers.common import constant, without_gradient

__all__ = ["TYPES"]


def _parameter_blobs(layer: Layer, shapes: Sequence[Shape]) -> tuple[BlobSpec, ...]:
    return (BlobSpec(tuple(layer.param.parameter_param.shape.dim), constant(0)),)


def _parameter(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    return (blobs[0].reshape(tuple(layer.param.parameter_param.shape.dim)),)


TYPES: dict[str, TorchLayer] = {
    "ContinuationIndicator": without_gradient,
    "DummyData": without_gradient,
    "Parameter": TorchLayer(_parameter, _parameter_blobs),
    **dict.fromkeys(SOURCE_TYPES, without_gradient),
}

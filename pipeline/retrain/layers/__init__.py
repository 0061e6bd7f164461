"""Caffe's layer types in training: for each its blobs and its computation in PyTorch."""

from __future__ import annotations

from caffeio.errors import NetError
from caffeio.graph import Layer
from pipeline.layers import layer_type, why_unknown
from pipeline.retrain.layers import (
    activation,
    convolution,
    elementwise,
    fork,
    inner_product,
    loss,
    normalization,
    pooling,
    quant,
    recurrent,
    select,
    shape,
    source,
)
from pipeline.retrain.layers.base import BlobSpec, Context, Shape, TorchLayer

__all__ = ["TABLE", "BlobSpec", "Context", "Shape", "TorchLayer", "torch_layer"]

#: Every layer type that can be trained, by the name it has in a prototxt; see `LayerType.like`.
TABLE: dict[str, TorchLayer] = {
    name: kind
    for family in (
        activation,
        convolution,
        elementwise,
        fork,
        inner_product,
        loss,
        normalization,
        pooling,
        quant,
        recurrent,
        select,
        shape,
        source,
    )
    for name, kind in family.TYPES.items()
}


def torch_layer(layer: Layer) -> TorchLayer:
    """Return how a layer computes in training.

    Raises
    ------
    caffeio.NetError
        If the layer's type is unknown, or cannot run.
    """
    kind = layer_type(layer)
    if not kind.computes:
        raise NetError(why_unknown(layer), layer.name)
    if layer.own is not None:
        raise NetError(
            f"type '{layer.type}' of [model] layers has no form for training", layer.name
        )
    if layer.is_source:
        return TABLE["Input"]
    return TABLE[kind.like or layer.type]

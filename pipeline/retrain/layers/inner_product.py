"""InnerProduct and Embed."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor
from torch.nn import functional

from caffeio.graph import Layer
from pipeline.layers.check import axis_index
from pipeline.retrain.layers.base import BlobSpec, Context, Shape, TorchLayer
from pipeline.retrain.layers.common import indices, weight_and_bias

__all__ = ["TYPES"]


def _weight_shape(layer: Layer, bottom: Shape) -> Shape:
    p = layer.param.inner_product_param
    inputs = prod(bottom[axis_index(layer, p.axis, len(bottom)) :])
    return (inputs, p.num_output) if p.transpose else (p.num_output, inputs)


def _blobs(layer: Layer, shapes: Sequence[Shape]) -> tuple[BlobSpec, ...]:
    p = layer.param.inner_product_param
    return weight_and_bias(
        _weight_shape(layer, shapes[0]), p.num_output, p.bias_term, p.weight_filler, p.bias_filler
    )


def _forward(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    p, x = layer.param.inner_product_param, bottoms[0]
    w = blobs[0].reshape(_weight_shape(layer, tuple(x.shape)))
    return (
        functional.linear(
            x.flatten(p.axis),
            w.T if p.transpose else w,
            blobs[1].reshape(-1) if p.bias_term else None,
        ),
    )


def _embed_blobs(layer: Layer, shapes: Sequence[Shape]) -> tuple[BlobSpec, ...]:
    p = layer.param.embed_param
    return weight_and_bias(
        (p.input_dim, p.num_output), p.num_output, p.bias_term, p.weight_filler, p.bias_filler
    )


def _embed(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    p = layer.param.embed_param
    index = indices(layer, bottoms, blobs, 0, p.input_dim)
    y = functional.embedding(index, blobs[0].reshape(p.input_dim, p.num_output))
    return (y + blobs[1].reshape(-1) if p.bias_term else y,)


TYPES: dict[str, TorchLayer] = {
    "Embed": TorchLayer(_embed, _embed_blobs),
    "InnerProduct": TorchLayer(_forward, _blobs),
}

"""What the torch forms of many layer types share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from google.protobuf.message import Message
from torch import Tensor

from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import FillerParameter
from pipeline.layers import layer_type
from pipeline.retrain.layers.base import BlobSpec, Context, Shape, TorchLayer

__all__ = [
    "bottom_shapes",
    "constant",
    "filler_or",
    "indices",
    "numpy_form",
    "root",
    "straight_through",
    "top_shape",
    "weight_and_bias",
    "without_gradient",
]


def bottom_shapes(bottoms: Sequence[Tensor]) -> list[Shape]:
    """Return the shapes of tensors as the shape rules want them."""
    return [tuple(x.shape) for x in bottoms]


def top_shape(layer: Layer, bottoms: Sequence[Tensor]) -> Shape:
    """Return the shape of a layer's first top, by its shape rule. For layers without weights."""
    return layer_type(layer).shapes(layer, bottom_shapes(bottoms))[0]


def constant(value: float) -> FillerParameter:
    """Return the filler of one value."""
    return FillerParameter(type="constant", value=value)


def filler_or(param: Message, name: str, value: float) -> FillerParameter:
    """Return a filler of a layer's parameters, or that of one value where none is given."""
    return getattr(param, name) if param.HasField(name) else constant(value)


def weight_and_bias(
    weights: Shape,
    outputs: int,
    bias: bool,
    weight_filler: FillerParameter,
    bias_filler: FillerParameter,
) -> tuple[BlobSpec, ...]:
    """Return the blobs of a layer with weights and perhaps a bias for each output."""
    weight = BlobSpec(weights, weight_filler)
    return (weight, BlobSpec((outputs,), bias_filler)) if bias else (weight,)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """Return `value` with the gradient of `x`, of the same shape."""
    result: Tensor = _StraightThrough.apply(x, value)
    return result


def root(x: Tensor, eps: float) -> Tensor:
    """Return ``sqrt(x)`` with the gradient ``1 / (2 (sqrt(x) + eps))``, finite at 0 as in Caffe."""
    with torch.no_grad():
        value = x.sqrt()
        half = 0.5 / (value + eps)
    line = x * half
    return line + (value - line).detach()


def numpy_form(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return what the layer's NumPy form makes of the bottoms: no gradient, on their device."""

    def array(x: Tensor) -> np.ndarray:
        return x.detach().to("cpu", torch.float32).contiguous().numpy()

    filled = replace(layer, blobs=tuple(map(array, blobs)))
    with np.errstate(all="ignore"):
        tops = layer_type(layer).forward(filled, [array(x) for x in bottoms], "cpu")
    like = bottoms[0] if bottoms else torch.empty(0)
    return tuple(torch.from_numpy(np.array(y)).to(like.device, like.dtype) for y in tops)


def indices(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], which: int, size: int
) -> Tensor:
    """Return a bottom as whole numbers; one that is not 0..size - 1 raises as the NumPy form."""
    index = bottoms[which].detach().long()
    if bool(((index < 0) | (index >= size)).any()):
        numpy_form(layer, bottoms, blobs)
    return index


def _without_gradient(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    return numpy_form(layer, bottoms, blobs)


#: The form of every layer type that has no gradient: its NumPy form.
without_gradient = TorchLayer(_without_gradient)

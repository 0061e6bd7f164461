"""Layers that map each value on its own: ReLU and its kin, powers and exponentials."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from caffeio.graph import Layer
from pipeline.layers.activation import dropout_scale, natural_log
from pipeline.retrain.layers.base import BlobSpec, Context, Shape, TorchLayer
from pipeline.retrain.layers.common import filler_or

__all__ = ["TYPES"]


def neuron(function: Callable[[Layer, Tensor], Tensor]) -> TorchLayer:
    """Make a layer type of a function of one tensor."""

    def forward(
        layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
    ) -> tuple[Tensor, ...]:
        return (function(layer, bottoms[0]),)

    return TorchLayer(forward)


def leaky(x: Tensor, slope: float) -> Tensor:
    """Return ``max(x, 0) + slope * min(x, 0)``; at 0 the gradient is the slope."""
    return functional.leaky_relu(x, slope) if slope else functional.relu(x)


def _clip(layer: Layer, x: Tensor) -> Tensor:
    p = layer.param.clip_param
    return x.clamp(p.min, p.max)


def _dropout(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    ratio, scale = layer.param.dropout_param.dropout_ratio, dropout_scale(layer)
    y = functional.dropout(bottoms[0], ratio) if context.train else bottoms[0]
    return (y if scale == 1 else y * scale,)  # in training that undoes what dropout has scaled


def _exp(layer: Layer, x: Tensor) -> Tensor:
    p = layer.param.exp_param
    log_base = natural_log(layer, p.base)
    y = torch.exp(x * (log_base * p.scale))
    return y * math.exp(log_base * p.shift) if p.shift else y


def _log(layer: Layer, x: Tensor) -> Tensor:
    p = layer.param.log_param
    return torch.log(x * p.scale + p.shift) / natural_log(layer, p.base)


def _power(layer: Layer, x: Tensor) -> Tensor:
    p = layer.param.power_param
    if p.power * p.scale == 0:
        # As Caffe: the result does not depend on x, not even on a NaN in it.
        return torch.full_like(x, p.shift).pow(p.power)
    y = x if p.scale == 1 else x * p.scale
    y = y + p.shift if p.shift else y
    return y if p.power == 1 else y.pow(p.power)


def _prelu_blobs(layer: Layer, shapes: Sequence[Shape]) -> tuple[BlobSpec, ...]:
    p = layer.param.prelu_param
    shape = () if p.channel_shared else (shapes[0][1],)
    return (BlobSpec(shape, filler_or(p, "filler", 0.25)),)


def _prelu(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    return (functional.prelu(bottoms[0], blobs[0].reshape(-1)),)


def _relu6(layer: Layer, x: Tensor) -> Tensor:
    return leaky(x, layer.param.relu6_param.negative_slope).clamp(max=6)


def _swish(layer: Layer, x: Tensor) -> Tensor:
    beta = layer.param.swish_param.beta
    return functional.silu(x) if beta == 1 else x * torch.sigmoid(x * beta)


TYPES: dict[str, TorchLayer] = {
    "AbsVal": neuron(lambda layer, x: x.abs()),
    # Above its threshold softplus is the identity, which float32 cannot tell apart there.
    "BNLL": neuron(lambda layer, x: functional.softplus(x, threshold=50)),
    "Clip": neuron(_clip),
    "Dropout": TorchLayer(_dropout),
    "ELU": neuron(lambda layer, x: functional.elu(x, layer.param.elu_param.alpha)),
    "Exp": neuron(_exp),
    "Log": neuron(_log),
    "Mish": neuron(lambda layer, x: functional.mish(x)),
    "Power": neuron(_power),
    "PReLU": TorchLayer(_prelu, _prelu_blobs),
    "ReLU": neuron(lambda layer, x: leaky(x, layer.param.relu_param.negative_slope)),
    "ReLU6": neuron(_relu6),
    "Sigmoid": neuron(lambda layer, x: torch.sigmoid(x)),
    "Softmax": neuron(lambda layer, x: torch.softmax(x, layer.param.softmax_param.axis)),
    "Swish": neuron(_swish),
    "TanH": neuron(lambda layer, x: torch.tanh(x)),
}

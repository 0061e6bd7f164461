"""Convolution, Deconvolution, their depthwise spellings, and Im2col."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from caffeio.graph import Layer
from pipeline.layers.check import fail
from pipeline.layers.convolution import (
    ConvParams,
    check_groups,
    conv_params,
    margins,
    taps,
    weight_shape,
    window_counts,
)
from pipeline.retrain.layers.base import BlobSpec, Context, Shape, TorchLayer
from pipeline.retrain.layers.common import weight_and_bias

__all__ = ["TYPES"]

_CONV: dict[int, Callable[..., Tensor]] = {
    0: functional.conv1d,
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_DECONV: dict[int, Callable[..., Tensor]] = {
    0: functional.conv_transpose1d,
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def _blobs(layer: Layer, shapes: Sequence[Shape], deconv: bool) -> tuple[BlobSpec, ...]:
    p, fillers = conv_params(layer, shapes[0]), layer.param.convolution_param
    channels = shapes[0][p.axis]
    check_groups(layer, p, channels)
    return weight_and_bias(
        weight_shape(p, channels, deconv),
        p.outputs,
        p.bias,
        fillers.weight_filler,
        fillers.bias_filler,
    )


def _spatial(layer: Layer, p: ConvParams, deconv: bool) -> Callable[..., Tensor]:
    """Return PyTorch's function for as many spatial axes as the kernel has."""
    functions = _DECONV if deconv else _CONV
    if len(p.kernel) not in functions:
        fail(
            layer,
            f"training needs at most 3 spatial axes behind axis {p.axis}, has {len(p.kernel)}",
        )
    return functions[len(p.kernel)]


def _forward(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], deconv: bool
) -> tuple[Tensor, ...]:
    p = conv_params(layer, tuple(bottoms[0].shape))
    function = _spatial(layer, p, deconv)
    w = blobs[0].reshape(weight_shape(p, bottoms[0].shape[p.axis], deconv))
    w = w if p.kernel else w.unsqueeze(-1)  # no axes to slide along: a product of channels
    bias = blobs[1].reshape(-1) if p.bias else None
    tops = []
    for bottom in bottoms:
        x = bottom if p.axis == 1 else bottom.reshape(-1, *bottom.shape[p.axis :])
        if not deconv:
            x = _widened(x, p)
        x = x if p.kernel else x.unsqueeze(-1)
        y = function(
            x,
            w,
            bias,
            stride=p.stride or 1,
            padding=p.pad or 0,
            dilation=p.dilation or 1,
            groups=p.group,
        )
        y = y if p.kernel else y.squeeze(-1)
        tops.append(y if p.axis == 1 else y.reshape(*bottom.shape[: p.axis], *y.shape[1:]))
    return tuple(tops)


def _widened(x: Tensor, p: ConvParams) -> Tensor:
    """Return images with the zeros that a kernel larger than a padded image reads beyond it."""
    beyond = margins(tuple(x.shape[2:]), p)
    if not any(beyond):
        return x
    return functional.pad(x, [n for margin in reversed(beyond) for n in (0, margin)])


def _conv(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    return _forward(layer, bottoms, blobs, deconv=False)


def _deconv(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    return _forward(layer, bottoms, blobs, deconv=True)


def _im2col(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    bottom = bottoms[0]
    p = conv_params(layer, tuple(bottom.shape))
    x = bottom.reshape(-1, *bottom.shape[p.axis :])
    size = window_counts(tuple(x.shape[2:]), p)
    source = functional.pad(_widened(x, p), [n for pad in reversed(p.pad) for n in (pad, pad)])
    columns = torch.stack([source[:, :, *where] for where in taps(p, size)], dim=2)
    channels = x.shape[1] * prod(p.kernel)
    return (columns.reshape(*bottom.shape[: p.axis], channels, *size),)


_CONVOLUTION = TorchLayer(_conv, lambda layer, shapes: _blobs(layer, shapes, deconv=False))

TYPES: dict[str, TorchLayer] = {
    "Convolution": _CONVOLUTION,
    "Deconvolution": TorchLayer(_deconv, lambda layer, shapes: _blobs(layer, shapes, deconv=True)),
    "Im2col": TorchLayer(_im2col),
}

"""Padding that differs from side to side, as a fork has it, in terms that every Caffe knows.

``pad_t`` zeros above and ``pad_b`` below, with a kernel of k rows, are the larger of the two on
both sides with a kernel that has as many more rows of zeros as they differ: in front where less is
wanted above, else behind. Windows begin and end where they did, their number is the same, and rows
of zeros add nothing: ``floor((H + 2 max(t, b) - (k + |t - b|)) / s) = floor((H + t + b - k) / s)``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from caffeio.errors import NetError
from caffeio.graph import Layer, Net
from caffeio.proto import caffe_pb2 as pb

__all__ = ["even_padding"]

_SIDES = ("pad_t", "pad_b", "pad_l", "pad_r")


def even_padding(net: Net) -> Net:
    """Return a net whose convolutions have the same padding on both sides.

    Raises
    ------
    NetError
        If a layer's padding cannot be written so: it has no weights yet, or is no Convolution of
        two spatial axes, or the sides do not differ by a multiple of its dilation.
    """
    return net.with_layers(tuple(map(_even, net.layers)))


def _even(layer: Layer) -> Layer:
    p = layer.param.convolution_param
    if not any(map(p.HasField, _SIDES)):
        return layer
    top, bottom, left, right = (getattr(p, side) for side in _SIDES)
    sides = (top, bottom), (left, right)
    extra = [abs(a - b) for a, b in sides]
    blobs = layer.blobs
    param = pb.LayerParameter()
    param.CopyFrom(layer.param)
    c = param.convolution_param
    if any(extra):
        dilation = [*p.dilation, 1][0]
        if layer.type == "Deconvolution" or not blobs or blobs[0].ndim != 4:
            raise NetError(
                f"pads {top} above, {bottom} below, {left} left and {right} right: that is read "
                "for convolutions of images only, with their weights",
                layer.name,
            )
        if any(n % dilation for n in extra):
            raise NetError(
                f"the padding of its sides differs by {max(extra)}, no multiple of its dilation "
                f"{dilation}",
                layer.name,
            )
        rows = [
            (n // dilation, 0) if a < b else (0, n // dilation)
            for n, (a, b) in zip(extra, sides, strict=True)
        ]
        weights = np.ascontiguousarray(np.pad(blobs[0], ((0, 0), (0, 0), *rows)))
        blobs = (weights, *blobs[1:])
        del c.kernel_size[:]
        c.kernel_h, c.kernel_w = weights.shape[2:]
    for side in _SIDES:
        c.ClearField(side)
    del c.pad[:]
    c.pad_h, c.pad_w = max(sides[0]), max(sides[1])
    return replace(layer, param=param, blobs=blobs)

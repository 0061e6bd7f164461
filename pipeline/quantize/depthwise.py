"""Depthwise convolutions of forks, taken as Convolution with a group for each channel."""

from __future__ import annotations

from dataclasses import replace

from caffeio import Layer, Net
from caffeio.proto.caffe_pb2 import LayerParameter
from pipeline.layers.convolution import DEPTHWISE

__all__ = ["depthwise_as_convolution", "depthwise_note"]

#: Names that a note lists.
_LISTED = 3


def depthwise_as_convolution(net: Net) -> Net:
    """Return the net with its DepthwiseConvolution and ConvolutionDepthwise layers as Convolution.

    The number of channels is that of the weights, or num_output where there are none; a
    ConvolutionDepthwise, which does not read that, stays without weights what it is.
    """
    return net.with_layers(tuple(map(_as_convolution, net.layers)))


def _as_convolution(layer: Layer) -> Layer:
    if layer.type not in DEPTHWISE:
        return layer
    own = layer.type == "ConvolutionDepthwise"
    if own and not layer.blobs:
        return layer
    param = LayerParameter()
    param.CopyFrom(layer.param)
    param.type = "Convolution"
    p = param.convolution_param
    channels = len(layer.blobs[0]) if layer.blobs else p.num_output
    if own:
        p.num_output = channels
    if own or p.group in (0, 1):
        p.group = channels
    return replace(layer, type="Convolution", param=param)


def depthwise_note(net: Net) -> str:
    """Say which layers stay in float for their type, and which key changes that; mostly nothing."""
    names = [f"'{layer.name}'" for layer in net.layers if layer.type in DEPTHWISE]
    if not names:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (
        f"{', '.join(names[:_LISTED])}{more}: depthwise types of forks stay in float; with "
        "model.depthwise_as_convolution = true they are taken as Convolution, and quantized"
    )

"""Which layers may be quantized, and for every layer that may not, the rule that says so."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from caffeio import Layer, Net
from caffeio.proto import caffe_pb2

__all__ = ["QUANTIZABLE", "Verdict", "judge"]

#: Layer types that can be quantized at all.
QUANTIZABLE = ("Convolution", "Deconvolution", "InnerProduct", "Pooling")


@dataclass(frozen=True)
class Verdict:
    """Whether one layer is quantized.

    Attributes
    ----------
    layer, type : str
    quantize : bool
    reason : str
        The rule that keeps it in float; empty if it is quantized.
    """

    layer: str
    type: str
    quantize: bool
    reason: str = ""


def judge(
    net: Net, skip_layers: Collection[str] = (), skip_types: Collection[str] = ()
) -> tuple[Verdict, ...]:
    """Say for every layer whether it is quantized.

    Parameters
    ----------
    net : Net
    skip_layers, skip_types : collection of str
        What the user keeps in float.

    Returns
    -------
    tuple of Verdict
        One for each layer, in the net's order.
    """
    return tuple(_judge(layer, skip_layers, skip_types) for layer in net.layers)


def _judge(layer: Layer, skip_layers: Collection[str], skip_types: Collection[str]) -> Verdict:
    reason = _rule(layer)
    if not reason and layer.name in skip_layers:
        reason = "named in skip_layers"
    if not reason and layer.type in skip_types:
        reason = f"{layer.type} is named in skip_layer_types"
    return Verdict(layer.name, layer.type, not reason, reason)


def _rule(layer: Layer) -> str:
    """Return the rule that excludes a layer, or an empty string."""
    if layer.type not in QUANTIZABLE:
        return f"{layer.type} has no INT8 form"
    if len(layer.bottoms) != 1 or len(layer.tops) != 1:
        return (
            f"it has {len(layer.bottoms)} bottoms and {len(layer.tops)} tops; 1 of each is needed"
        )
    if layer.type == "InnerProduct":
        return _inner_product_rule(layer)
    if layer.type == "Pooling":
        return _pooling_rule(layer)
    return _convolution_rule(layer)


def _inner_product_rule(layer: Layer) -> str:
    param = layer.param.inner_product_param
    if param.transpose:
        return "transpose is true"
    return "" if param.axis == 1 else f"axis is {param.axis}, not 1"


def _pooling_rule(layer: Layer) -> str:
    param = layer.param.pooling_param
    if param.pool != caffe_pb2.PoolingParameter.AVE:
        method = caffe_pb2.PoolingParameter.PoolMethod.Name(param.pool)
        return f"pooling is {method}, not AVE"
    return "global_pooling is true" if param.global_pooling else ""


def _convolution_rule(layer: Layer) -> str:
    param = layer.param.convolution_param
    if any(d != 1 for d in param.dilation):
        return f"dilation is {max(param.dilation)}, not 1"
    if layer.type == "Deconvolution" and param.group != 1:
        return f"group is {param.group}, not 1"
    if layer.blobs and layer.blobs[0].ndim != 4:
        return f"its filter has {layer.blobs[0].ndim} dimensions, not 4"
    return "" if param.axis == 1 else f"axis is {param.axis}, not 1"

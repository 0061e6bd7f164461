"""The two models that quantization hands over, as nets, and the map between their layers.

Fakequant: all float32, weights and bias quantized and dequantized; a Quant layer before
each quantized layer (one for all that read the same data alike) and a DeQuant after it.
Deploy: the same layers with int8 weights, int32 bias, and the dequantization parameters of
each channel packed in 64 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from caffeio import Layer, Net, Value
from caffeio.proto import caffe_pb2
from pipeline.layers.int8 import QuantizedLayer
from pipeline.quantize.fuse import Fused
from pipeline.quantize.integers import reciprocal

__all__ = ["NodePair", "deploy_net", "fakequant_net", "node_map"]


@dataclass(frozen=True)
class NodePair:
    """Which layers of the original became which layers of the quantized model."""

    original: tuple[str, ...]
    quantized: str
    quant: str
    dequant: str


def fakequant_net(net: Net, layers: Mapping[str, QuantizedLayer]) -> Net:
    """Return the model that simulates INT8 in float32.

    Parameters
    ----------
    net : Net
        Fused, float.
    layers : mapping of layer name to QuantizedLayer
    """
    return _insert(net, layers, fake=True)


def deploy_net(net: Net, layers: Mapping[str, QuantizedLayer]) -> Net:
    """Return the model with integer weights; arguments as `fakequant_net`."""
    return _insert(net, layers, fake=False)


def node_map(fused: Fused, layers: Mapping[str, QuantizedLayer]) -> tuple[NodePair, ...]:
    """Return, for each quantized layer, what it was made of and what stands around it."""
    quants = _quant_names(fused.net, layers)
    return tuple(
        NodePair(fused.origin(name), name, quants[name], f"{name}_dequant")
        for name in (layer.name for layer in fused.net.layers)
        if name in layers
    )


def _quant_names(net: Net, layers: Mapping[str, QuantizedLayer]) -> dict[str, str]:
    """Return the name of the Quant layer that each quantized layer reads."""
    first: dict[tuple[Value, object], str] = {}
    names = {}
    for layer, link in zip(net.layers, net.links, strict=True):
        if layer.name in layers:
            key = (link.reads[0], layers[layer.name].data)
            names[layer.name] = first.setdefault(key, f"{layer.name}_quant")
    return names


def _insert(net: Net, layers: Mapping[str, QuantizedLayer], *, fake: bool) -> Net:
    quants = _quant_names(net, layers)
    out: list[Layer] = []
    for layer in net.layers:
        q = layers.get(layer.name)
        if q is None:
            out.append(layer)
            continue
        quant = quants[layer.name]
        if quant == f"{layer.name}_quant":
            readers = [name for name, maker in quants.items() if maker == quant]
            out.append(_quant_layer(quant, layer.bottoms[0], q, readers))
        out.append(_with_blobs(layer, quant, _blobs(q, layer, fake)))
        out.append(_dequant_layer(layer, q, fake))
    return net.with_layers(tuple(out))


def _blobs(q: QuantizedLayer, layer: Layer, fake: bool) -> tuple[np.ndarray, ...]:
    if fake or q.weights is None:
        return q.fake_blobs(layer)
    return (q.weights,) if q.bias is None else (q.weights, q.bias)


def _with_blobs(layer: Layer, bottom: str, blobs: tuple[np.ndarray, ...]) -> Layer:
    param = caffe_pb2.LayerParameter()
    param.CopyFrom(layer.param)
    param.bottom[:] = [bottom]
    return replace(layer, bottoms=(bottom,), param=param, blobs=blobs)


def _layer(name: str, kind: str, bottom: str, top: str, **params: object) -> Layer:
    param = caffe_pb2.LayerParameter(
        name=name,
        type=kind,
        bottom=[bottom],
        top=[top],
        **params,  # type: ignore[arg-type]
    )
    return Layer(name, kind, (bottom,), (top,), param)


def _quant_layer(name: str, bottom: str, q: QuantizedLayer, readers: list[str]) -> Layer:
    """Return the Quant layer; its top bears its own name."""
    param = caffe_pb2.QuantParameter(
        with_offset=q.data.offset != 0,
        scale=reciprocal(q.data.scale),
        offset=np.int8(q.data.offset).tobytes(),
        object_layer="-".join(readers),
    )
    return _layer(name, "Quant", bottom, name, quant_param=param)


def _dequant_layer(layer: Layer, q: QuantizedLayer, fake: bool) -> Layer:
    """Return the DeQuant layer, in place on the layer's top."""
    count = q.deq_scale.size
    param = caffe_pb2.DeQuantParameter(
        channel_wise=count > 1, object_layer=layer.name, layer_type=layer.type
    )
    dequant = _layer(
        f"{layer.name}_dequant", "DeQuant", layer.tops[0], layer.tops[0], dequant_param=param
    )
    if fake:
        zeros = np.zeros(count, np.float32)
        return replace(dequant, blobs=(q.deq_scale, q.shift.astype(np.float32), zeros))
    bits = q.deq_scale.view(np.uint32).astype(np.uint64)
    return replace(dequant, blobs=(bits | (q.shift.astype(np.uint64) << np.uint64(32)),))

"""A net as an ONNX graph: in float32, or with QuantizeLinear and DequantizeLinear around layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from caffeio import Layer, Net
from pipeline.export.onnx_layers import WRITERS, Graph, Place, onnx_package
from pipeline.layers import Shape
from pipeline.layers.int8 import INT8_TYPES, QuantizedLayer
from pipeline.runtime.executor import FloatNet

__all__ = ["OPSET", "to_onnx"]

#: The first opset whose DequantizeLinear takes a scale for each channel.
OPSET = 13


def to_onnx(
    net: Net, batch: int | None = None, numbers: Mapping[str, QuantizedLayer] | None = None
) -> Any:
    """Return a net with weights as an ``onnx.ModelProto``.

    A quantized layer reads its data through QuantizeLinear and DequantizeLinear, and weights (int8)
    and bias (int32) through DequantizeLinear: that is what its integers stand for.

    Parameters
    ----------
    net : Net
        Fused, where `numbers` are given.
    batch : int, optional
        So many images at a time; by default the batch is free, and named ``N``.
    numbers : mapping of layer name to QuantizedLayer, optional
        The layers that are quantized.

    Returns
    -------
    onnx.ModelProto
        Checked. Its inputs are named as the blobs; its outputs come as in ``net.outputs``.

    Raises
    ------
    PipelineError
        If a layer has no ONNX form here, or a shift N, which ONNX has not.
    """
    runner, g = FloatNet(net), Graph()
    own = {v.blob: shape for v, shape in runner.shapes().items() if v.blob in net.inputs}
    inputs = {blob: (batch or own[blob][0], *own[blob][1:]) for blob in net.inputs}
    shapes = runner.shapes(inputs)
    quants: dict[tuple[str, object], str] = {}
    for layer, link in zip(net.layers, net.links, strict=True):
        if layer.is_source:
            continue
        at = Place(
            layer,
            tuple(map(str, link.reads)),
            tuple(map(str, link.writes)),
            tuple(shapes[v] for v in link.reads),
            tuple(shapes[v] for v in link.writes),
        )
        if layer.type not in WRITERS:
            raise at.refuse(f"type {layer.type}")
        q = (numbers or {}).get(layer.name)
        WRITERS[layer.type](g, at if q is None else _quantized(g, at, q, quants))
    last = {value.blob: value for link in net.links for value in link.writes}
    results = {str(last[blob]): shapes[last[blob]] for blob in net.outputs}
    ends = {g.same.get(name, name): s for name, s in results.items()}
    return _model(g, inputs, ends, free=batch is None)


def _quantized(
    g: Graph, at: Place, q: QuantizedLayer, quants: dict[tuple[str, object], str]
) -> Place:
    """Add what stands around a quantized layer; return the layer with what it reads then."""
    if q.shift.any():
        raise at.refuse("a shift N (joint_quant)")
    key = (g.same.get(at.reads[0], at.reads[0]), q.data)
    if key not in quants:
        base = f"{at.layer.name}.data"
        scale = g.constant(f"{base}_scale", np.array(q.data.scale, np.float32))
        zero = g.constant(f"{base}_zero_point", np.array(q.data.offset, np.int8))
        integers = g.node("QuantizeLinear", [at.reads[0], scale, zero], f"{base}_int8")
        quants[key] = g.node("DequantizeLinear", [integers, scale, zero], base)
    weights = tuple(_weights(g, at.layer, q))
    return replace(at, reads=(quants[key], *at.reads[1:]), weights=weights)


def _weights(g: Graph, layer: Layer, q: QuantizedLayer) -> list[str]:
    """Return the dequantized weights and bias of a layer."""
    if q.weights is None:
        return []
    w = q.weights
    if layer.type == "InnerProduct":
        w = w.reshape(layer.param.inner_product_param.num_output, -1)
    names = [_dequantized(g, f"{layer.name}.weight", w, q.scale_w, INT8_TYPES[q.type].channel_axis)]
    if q.bias is not None:
        deq = np.broadcast_to(q.deq_scale, q.bias.shape)
        names.append(_dequantized(g, f"{layer.name}.bias", q.bias, deq, 0))
    return names


def _dequantized(g: Graph, name: str, values: np.ndarray, scale: np.ndarray, axis: int) -> str:
    one = scale.size == 1 and values.ndim != 1
    scales = g.constant(f"{name}_scale", scale.reshape(()) if one else scale)
    zero = np.zeros((), values.dtype) if one else np.zeros(scale.size, values.dtype)
    zeros = g.constant(f"{name}_zero_point", zero)
    integers = g.constant(f"{name}_integers", values)
    more = {} if one else {"axis": axis}
    return g.node("DequantizeLinear", [integers, scales, zeros], name, **more)


def _model(g: Graph, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape], free: bool) -> Any:
    """Put the graph together, check it, and infer the shapes that quantizers ask for."""
    onnx = onnx_package()
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT

    def info(name: str, shape: Shape) -> Any:
        axes: list[int | str] = list(shape)
        if free and axes:
            axes[0] = "N"
        return helper.make_tensor_value_info(name, kind, axes)

    graph = helper.make_graph(
        g.nodes,
        "net",
        [info(name, shape) for name, shape in inputs.items()],
        [info(name, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(value, name) for name, value in g.constants.items()],
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="caffe-quant")
    onnx.checker.check_model(model)
    return onnx.shape_inference.infer_shapes(model)

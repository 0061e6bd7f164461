"""A Caffe net as an ONNX graph in float32, for the layer types of the nets measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from caffeio import Layer, Net
from pipeline import FloatNet
from pipeline.layers.convolution import conv_params
from pipeline.layers.pooling import pool_params

__all__ = ["to_onnx"]

Shape = tuple[int, ...]


@dataclass
class _Graph:
    """Nodes and constants gathered so far; `same` names the values that are another's."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Add a node with one output."""
        helper: Any = import_module("onnx").helper
        names = [self.same.get(name, name) for name in inputs]
        self.nodes.append(helper.make_node(op, names, [output], name=output, **attributes))

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant and return its name."""
        self.constants[name] = np.ascontiguousarray(value)
        return name


@dataclass(frozen=True)
class _Place:
    """A layer with the names and shapes of what it reads and writes."""

    layer: Layer
    reads: tuple[str, ...]
    writes: str
    shapes: tuple[Shape, ...]
    result: Shape

    def refuse(self, what: str) -> ValueError:
        """Return the error to raise."""
        return ValueError(f"layer '{self.layer.name}': {what} has no ONNX form here")

    def blobs(self, g: _Graph, *shapes: Shape) -> list[str]:
        """Add the layer's weights, in these shapes, and return their names."""
        pairs = enumerate(zip(self.layer.blobs, shapes, strict=False))
        return [g.constant(f"{self.layer.name}.{i}", b.reshape(s)) for i, (b, s) in pairs]


def _conv(g: _Graph, at: _Place) -> None:
    p = conv_params(at.layer, at.shapes[0])
    weights = at.blobs(g, at.layer.blobs[0].shape, (-1,))
    window = {"strides": p.stride, "pads": p.pad * 2, "dilations": p.dilation, "group": p.group}
    g.node("Conv", [*at.reads, *weights], at.writes, **window)


def _pool(g: _Graph, at: _Place) -> None:
    """Write Caffe's rounding up as padding at the far ends: readers differ in ``ceil_mode``."""
    p, size = pool_params(at.layer, at.shapes[0]), at.shapes[0][2:]
    if p.method not in ("MAX", "AVE") or len(at.layer.tops) > 1:
        raise at.refuse(f"{p.method} pooling with {len(at.layer.tops)} tops")
    if p.method == "AVE" and p.kernel == size and not any(p.pad):
        return g.node("GlobalAveragePool", at.reads, at.writes)
    axes = zip(at.result[2:], p.stride, p.kernel, size, p.pad, strict=True)
    ends = [max((n - 1) * step + k - length - pad, 0) for n, step, k, length, pad in axes]
    where: dict[str, Any] = {"kernel_shape": p.kernel, "strides": p.stride, "pads": [*p.pad, *ends]}
    if p.method == "MAX":
        return g.node("MaxPool", at.reads, at.writes, **where)
    if any(end > pad for end, pad in zip(ends, p.pad, strict=True)):
        raise at.refuse("average pooling whose last window is cut")
    return g.node("AveragePool", at.reads, at.writes, count_include_pad=1, **where)


def _relu(g: _Graph, at: _Place) -> None:
    if slope := at.layer.param.relu_param.negative_slope:
        return g.node("LeakyRelu", at.reads, at.writes, alpha=slope)
    return g.node("Relu", at.reads, at.writes)


def _clip(g: _Graph, at: _Place) -> None:
    p = at.layer.param.clip_param
    ends = {"low": p.min, "high": p.max} if at.layer.type == "Clip" else {"low": 0.0, "high": 6.0}
    names = [g.constant(f"{at.layer.name}.{k}", np.array(v, np.float32)) for k, v in ends.items()]
    g.node("Clip", [*at.reads, *names], at.writes)


def _eltwise(g: _Graph, at: _Place) -> None:
    p = at.layer.param.eltwise_param
    if p.operation != p.SUM or any(c != 1 for c in p.coeff) or len(at.reads) != 2:
        raise at.refuse("Eltwise other than a sum of two")
    g.node("Add", at.reads, at.writes)


def _concat(g: _Graph, at: _Place) -> None:
    g.node("Concat", at.reads, at.writes, axis=at.layer.param.concat_param.axis)


def _softmax(g: _Graph, at: _Place) -> None:
    g.node("Softmax", at.reads, at.writes, axis=at.layer.param.softmax_param.axis)


def _product(g: _Graph, at: _Place) -> None:
    p = at.layer.param.inner_product_param
    if p.axis != 1:
        raise at.refuse(f"InnerProduct over axis {p.axis}")
    x = at.reads[0]
    if len(at.shapes[0]) > 2:
        g.node("Flatten", at.reads, x := f"{at.writes}.flat", axis=1)
    weights = at.blobs(g, (-1, at.layer.blobs[0].shape[-1]), (-1,))
    g.node("Gemm", [x, *weights], at.writes, transB=int(not p.transpose))


def _batch_norm(g: _Graph, at: _Place) -> None:
    mean, variance, factor = (b.reshape(-1) for b in at.layer.blobs)
    share = 1 / factor[0] if factor[0] else np.float32(0)
    values = (np.ones_like(mean), np.zeros_like(mean), mean * share, variance * share)
    names = [g.constant(f"{at.layer.name}.{i}", value) for i, value in enumerate(values)]
    epsilon = at.layer.param.batch_norm_param.eps
    g.node("BatchNormalization", [*at.reads, *names], at.writes, epsilon=epsilon)


def _scale(g: _Graph, at: _Place) -> None:
    if len(at.reads) > 1 or at.layer.param.scale_param.axis != 1:
        raise at.refuse("Scale by another blob or over another axis")
    each = (-1, *(1,) * (len(at.shapes[0]) - 2))
    factor, *bias = at.blobs(g, each, each)
    g.node("Mul", [*at.reads, factor], product := f"{at.writes}.scaled" if bias else at.writes)
    if bias:
        g.node("Add", [product, *bias], at.writes)


def _reshape(g: _Graph, at: _Place) -> None:
    shape = g.constant(f"{at.layer.name}.shape", np.array(at.result, np.int64))
    g.node("Reshape", [*at.reads, shape], at.writes)


def _pass(g: _Graph, at: _Place) -> None:
    g.same[at.writes] = g.same.get(at.reads[0], at.reads[0])


_WRITERS: Mapping[str, Callable[[_Graph, _Place], None]] = {
    "BatchNorm": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Convolution": _conv,
    "Dropout": _pass,
    "Eltwise": _eltwise,
    "Flatten": _reshape,
    "InnerProduct": _product,
    "Pooling": _pool,
    "ReLU": _relu,
    "ReLU6": _clip,
    "Reshape": _reshape,
    "Scale": _scale,
    "Softmax": _softmax,
}


def to_onnx(net: Net, batch: int) -> Any:
    """Return a net with weights, for so many images at a time, as an ``onnx.ModelProto``.

    Its inputs have the blobs' names; its outputs come in the order of ``net.outputs``.

    Raises
    ------
    ValueError
        If a layer has no ONNX form here.
    """
    runner, g = FloatNet(net), _Graph()
    own = {v.blob: shape for v, shape in runner.shapes().items() if v.blob in net.inputs}
    inputs = {blob: (batch, *own[blob][1:]) for blob in net.inputs}
    shapes = runner.shapes(inputs)
    for layer, link in zip(net.layers, net.links, strict=True):
        if layer.is_source:
            continue
        reads, result = tuple(map(str, link.reads)), link.writes[0]
        at = _Place(layer, reads, str(result), tuple(shapes[v] for v in link.reads), shapes[result])
        if layer.type not in _WRITERS:
            raise at.refuse(f"type {layer.type}")
        _WRITERS[layer.type](g, at)
    last = {value.blob: value for link in net.links for value in link.writes}
    results = {str(last[blob]): shapes[last[blob]] for blob in net.outputs}
    return _model(g, inputs, {g.same.get(name, name): s for name, s in results.items()})


def _model(g: _Graph, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> Any:
    """Put the graph together, check it, and infer the shapes that quantizers ask for."""
    onnx: Any = import_module("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        g.nodes,
        "net",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(value, name) for name, value in g.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return onnx.shape_inference.infer_shapes(model)

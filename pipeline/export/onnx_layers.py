"""Each layer type as nodes of an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from caffeio import Layer
from kernels.pool import divisors
from pipeline.errors import PipelineError
from pipeline.layers import Shape
from pipeline.layers.convolution import conv_params
from pipeline.layers.pooling import pool_geometry, pool_params
from pipeline.layers.shape import concat_axis, crop_offsets, permute_order

__all__ = ["WRITERS", "Graph", "Place", "onnx_package"]


def onnx_package() -> Any:
    """Import onnx, or raise `PipelineError` with the extra that brings it."""
    try:
        return import_module("onnx")
    except ImportError:
        raise PipelineError(
            "ONNX models need the package onnx: pip install 'caffe-quant[onnx]'"
        ) from None


@dataclass
class Graph:
    """Nodes and constants gathered so far; `same` names the values that are another's."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node with one output, and return that."""
        helper = onnx_package().helper
        names = [self.same.get(name, name) for name in inputs]
        self.nodes.append(helper.make_node(op, names, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant and return its name."""
        self.constants[name] = np.ascontiguousarray(value)
        return name


@dataclass(frozen=True)
class Place:
    """A layer with the names and shapes of what it reads and writes.

    Attributes
    ----------
    layer : Layer
    reads, writes : tuple of str
        Values by blob and version: names of the graph.
    shapes, results : tuple of tuple of int
        Of them; the first axis is the batch, of whatever size.
    weights : tuple of str
        Names of what stands for the layer's blobs; empty: the blobs themselves are to be added.
    """

    layer: Layer
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    shapes: tuple[Shape, ...]
    results: tuple[Shape, ...]
    weights: tuple[str, ...] = ()

    def refuse(self, what: str) -> PipelineError:
        """Return the error to raise."""
        return PipelineError(f"layer '{self.layer.name}': {what} has no ONNX form here")

    def blobs(self, g: Graph, *shapes: Shape) -> list[str]:
        """Return names of the layer's weights, in these shapes."""
        if self.weights:
            return list(self.weights)
        pairs = enumerate(zip(self.layer.blobs, shapes, strict=False))
        return [g.constant(f"{self.layer.name}.{i}", b.reshape(s)) for i, (b, s) in pairs]

    def number(self, g: Graph, name: str, value: float | np.ndarray) -> str:
        """Return the name of a constant of the layer's."""
        return g.constant(f"{self.layer.name}.{name}", np.asarray(value, np.float32))


def _conv(g: Graph, at: Place) -> None:
    p = conv_params(at.layer, at.shapes[0])
    weights = at.blobs(g, at.layer.blobs[0].shape, (-1,))
    op = "ConvTranspose" if at.layer.type == "Deconvolution" else "Conv"
    window = {"strides": p.stride, "pads": p.pad * 2, "dilations": p.dilation, "group": p.group}
    g.node(op, [at.reads[0], *weights], at.writes[0], kernel_shape=p.kernel, **window)


def _pool(g: Graph, at: Place) -> None:
    """Write Caffe's rounding up as padding at the far ends: readers differ in ``ceil_mode``."""
    p, size = pool_params(at.layer, at.shapes[0]), at.shapes[0][2:]
    if p.method not in ("MAX", "AVE") or len(at.writes) > 1 or p.margins is not None:
        raise at.refuse(f"{p.method} pooling with {len(at.writes)} tops")
    if p.method == "AVE" and p.kernel == size and not any(p.pad):
        g.node("GlobalAveragePool", at.reads, at.writes[0])
        return
    axes = zip(at.results[0][2:], p.stride, p.kernel, size, p.pad, strict=True)
    ends = [max((n - 1) * step + k - length - pad, 0) for n, step, k, length, pad in axes]
    where: dict[str, Any] = {"kernel_shape": p.kernel, "strides": p.stride, "pads": [*p.pad, *ends]}
    if p.method == "MAX":
        g.node("MaxPool", at.reads, at.writes[0], **where)
        return
    whole = p.kernel[0] * p.kernel[1]
    share = whole / divisors(
        (size[0], size[1]), pool_geometry(at.layer, at.shapes[0], at.results[0])
    )
    cut = not (np.isfinite(share).all() and (share == 1).all())
    average = f"{at.writes[0]}.whole" if cut else at.writes[0]
    # no pads of its own: readers differ in what they divide by at the far ends
    padded = at.reads[0]
    if any(where.pop("pads")):
        edges = np.array([0, 0, *p.pad, 0, 0, *ends], np.int64)
        pads = g.constant(f"{at.layer.name}.pads", edges)
        padded = g.node("Pad", [at.reads[0], pads], f"{at.writes[0]}.padded")
    g.node("AveragePool", [padded], average, **where)
    if cut:  # Caffe divides by the part of a window that lies in the padded image
        g.node("Mul", [average, at.number(g, "share", share[None, None])], at.writes[0])


def _relu(g: Graph, at: Place) -> None:
    slope = at.layer.param.relu_param.negative_slope if at.layer.type == "ReLU" else 0.0
    if slope:
        g.node("LeakyRelu", at.reads, at.writes[0], alpha=slope)
    else:
        g.node("Relu", at.reads, at.writes[0])


def _prelu(g: Graph, at: Place) -> None:
    each = (-1, *(1,) * (len(at.shapes[0]) - 2))
    g.node("PRelu", [at.reads[0], *at.blobs(g, each)], at.writes[0])


def _clip(g: Graph, at: Place) -> None:
    p = at.layer.param.clip_param
    ends = {"low": p.min, "high": p.max} if at.layer.type == "Clip" else {"low": 0.0, "high": 6.0}
    g.node("Clip", [*at.reads, *(at.number(g, k, v) for k, v in ends.items())], at.writes[0])


def _eltwise(g: Graph, at: Place) -> None:
    p = at.layer.param.eltwise_param
    if p.operation == p.PROD:
        values, op = list(at.reads), "Mul"
    elif p.operation == p.MAX:
        g.node("Max", at.reads, at.writes[0])
        return
    else:
        op, values = "Add", []
        for i, name in enumerate(at.reads):
            c = p.coeff[i] if p.coeff else 1.0
            values.append(name if c == 1 else g.node(
                "Mul", [name, at.number(g, f"coeff{i}", c)], f"{at.writes[0]}.{i}"))  # fmt: skip
    total = values[0]
    for i, name in enumerate(values[1:], 1):
        last = i == len(values) - 1
        total = g.node(op, [total, name], at.writes[0] if last else f"{at.writes[0]}.sum{i}")


def _concat(g: Graph, at: Place) -> None:
    axis = concat_axis(at.layer, "concat_dim", len(at.shapes[0]))
    g.node("Concat", at.reads, at.writes[0], axis=axis)


def _softmax(g: Graph, at: Place) -> None:
    g.node("Softmax", at.reads, at.writes[0], axis=at.layer.param.softmax_param.axis)


def _product(g: Graph, at: Place) -> None:
    p = at.layer.param.inner_product_param
    if p.axis != 1:
        raise at.refuse(f"InnerProduct over axis {p.axis}")
    x = at.reads[0]
    if len(at.shapes[0]) > 2:
        x = g.node("Flatten", [x], f"{at.writes[0]}.flat", axis=1)
    weights = at.blobs(g, (-1, at.layer.blobs[0].shape[-1]), (-1,))
    g.node("Gemm", [x, *weights], at.writes[0], transB=int(not p.transpose))


def _batch_norm(g: Graph, at: Place) -> None:
    if at.layer.param.batch_norm_param.scale_bias:
        raise at.refuse("BatchNorm with scale_bias that is not folded")
    mean, variance, factor = (b.reshape(-1) for b in at.layer.blobs)
    share = 1 / factor[0] if factor[0] else np.float32(0)
    values = (np.ones_like(mean), np.zeros_like(mean), mean * share, variance * share)
    names = [g.constant(f"{at.layer.name}.{i}", value) for i, value in enumerate(values)]
    epsilon = at.layer.param.batch_norm_param.eps
    g.node("BatchNormalization", [*at.reads, *names], at.writes[0], epsilon=epsilon)


def _scale(g: Graph, at: Place) -> None:
    if len(at.reads) > 1 or at.layer.param.scale_param.axis != 1:
        raise at.refuse("Scale by another blob or over another axis")
    each = (-1, *(1,) * (len(at.shapes[0]) - 2))
    factor, *bias = at.blobs(g, each, each)
    product = f"{at.writes[0]}.scaled" if bias else at.writes[0]
    g.node("Mul", [*at.reads, factor], product)
    if bias:
        g.node("Add", [product, *bias], at.writes[0])


def _reshape(g: Graph, at: Place) -> None:
    top = at.results[0]
    # 0 keeps the batch, whatever its size
    kept = bool(top) and top[0] == at.shapes[0][0]
    shape = g.constant(f"{at.layer.name}.shape", np.array([0, *top[1:]] if kept else top, np.int64))
    g.node("Reshape", [at.reads[0], shape], at.writes[0])


def _permute(g: Graph, at: Place) -> None:
    g.node("Transpose", at.reads, at.writes[0], perm=permute_order(at.layer, len(at.shapes[0])))


def _crop(g: Graph, at: Place) -> None:
    offsets = crop_offsets(at.layer, at.shapes)
    axes = [i for i in range(1, len(offsets)) if at.shapes[0][i] != at.results[0][i]]
    if not axes:
        _pass(g, at)
        return
    begin = [offsets[i] for i in axes]
    _slice(g, at, 0, axes, begin, [b + at.results[0][i] for i, b in zip(axes, begin, strict=True)])


def _slice(
    g: Graph, at: Place, k: int, axes: Sequence[int], begin: Sequence[int], end: Sequence[int]
) -> None:
    numbers = {"begin": begin, "end": end, "axes": axes}
    names = [
        g.constant(f"{at.layer.name}.{k}.{n}", np.array(v, np.int64)) for n, v in numbers.items()
    ]
    g.node("Slice", [at.reads[0], *names], at.writes[k])


def _slices(g: Graph, at: Place) -> None:
    axis = concat_axis(at.layer, "slice_dim", len(at.shapes[0]))
    begin = 0
    for k, shape in enumerate(at.results):
        _slice(g, at, k, [axis], [begin], [begin + shape[axis]])
        begin += shape[axis]


def _pass(g: Graph, at: Place) -> None:
    for name in at.writes:
        g.same[name] = g.same.get(at.reads[0], at.reads[0])


def _lrn(g: Graph, at: Place) -> None:
    p = at.layer.param.lrn_param
    if p.norm_region != p.ACROSS_CHANNELS:
        raise at.refuse("LRN within channels")
    g.node("LRN", at.reads, at.writes[0], size=p.local_size, alpha=p.alpha, beta=p.beta, bias=p.k)


def _plain(op: str) -> Callable[[Graph, Place], None]:
    def write(g: Graph, at: Place) -> None:
        g.node(op, at.reads, at.writes[0])

    return write


#: How each layer type is written.
WRITERS: Mapping[str, Callable[[Graph, Place], None]] = {
    "AbsVal": _plain("Abs"),
    "BatchNorm": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Convolution": _conv,
    "Crop": _crop,
    "Deconvolution": _conv,
    "Dropout": _pass,
    "Eltwise": _eltwise,
    "Flatten": _reshape,
    "InnerProduct": _product,
    "LRN": _lrn,
    "PReLU": _prelu,
    "Permute": _permute,
    "Pooling": _pool,
    "ReLU": _relu,
    "ReLU6": _clip,
    "Reshape": _reshape,
    "Scale": _scale,
    "Sigmoid": _plain("Sigmoid"),
    "Slice": _slices,
    "Softmax": _softmax,
    "Split": _pass,
    "TanH": _plain("Tanh"),
}

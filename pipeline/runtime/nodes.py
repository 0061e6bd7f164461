"""A net as nodes for compilation: layers with what they take in of the layers behind them.

A float32 convolution takes in the BatchNorm and Scale that alone read it: their factors go
into its weights, in float64, so that results differ in the last bits only. Any convolution
takes in the ReLU (ReLU6, Clip, PReLU) that alone reads it, an element-wise sum with a value
made before, and a ReLU behind that: they become parts of its output stage, bit for bit.
Layers that change nothing (Dropout, Split) are gone. What cannot be compiled is a node of
kind `LAYER`: it runs as its layer does, on arrays.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from caffeio.graph import Layer, Net, Value
from caffeio.proto.caffe_pb2 import EltwiseParameter
from kernels import PoolGeometry
from pipeline.layers import Shape
from pipeline.layers.convolution import conv_params
from pipeline.layers.normalization import uses_global_stats
from pipeline.layers.pooling import pool_params

__all__ = ["Affine", "Node", "make_nodes", "pool_geometry"]

_CONVOLUTIONS = {
    "Convolution": "conv",
    "ConvolutionDepthwise": "conv",
    "DepthwiseConvolution": "conv",
    "Deconvolution": "deconv",
}
_SAME = frozenset({"Dropout", "Split"})
_WEIGHTED = frozenset({"conv", "deconv", "inner"})
_HOSTS = _WEIGHTED | {"average", "apply"}


@dataclass(frozen=True)
class Affine:
    """``y = x * k + shift`` for each channel, in float64."""

    k: np.ndarray
    shift: np.ndarray

    def then(self, other: Affine) -> Affine:
        """Return what both do, one after the other."""
        return Affine(self.k * other.k, self.shift * other.k + other.shift)


@dataclass(frozen=True)
class Node:
    """One computation.

    Attributes
    ----------
    kind : str
        "conv", "deconv", "inner", "max", "average", "concat", "apply" (element by element),
        or "layer" (not compiled).
    position : int
        Of its layer in the net.
    reads, writes : tuple of Value
        Without layers that change nothing; `writes` is that of the last layer taken in.
    affine : Affine or None
        What is done to the result of a product first.
    other : Value or None
        What is added before the clamp.
    slope : float32 array (C,) or None
        What negative values are multiplied by, before anything is added.
    clamp : (float, float) or None
        Lowest and highest value of the result.
    """

    kind: str
    position: int
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    affine: Affine | None = None
    other: Value | None = None
    slope: np.ndarray | None = None
    clamp: tuple[float, float] | None = None


def pool_geometry(layer: Layer, bottom: Shape, top: Shape) -> PoolGeometry:
    """Return the windows of a Pooling layer."""
    p = pool_params(layer, bottom)
    return PoolGeometry(p.kernel, p.stride, p.pad, (top[2], top[3]))


def make_nodes(
    net: Net,
    layers: Sequence[int],
    shapes: Mapping[Value, Shape],
    keep: Collection[Value],
    plain: Collection[int],
    integers: Collection[str] = (),
) -> tuple[tuple[Node, ...], dict[Value, Value]]:
    """Turn layers into nodes.

    Parameters
    ----------
    net : Net
    layers : sequence of int
        Positions to run, in order.
    shapes : mapping of Value to shape
    keep : collection of Value
        Values that must be there in the end: they are not taken in.
    plain : collection of int
        Positions of layers that must not be compiled.
    integers : collection of str
        Names of layers that run on integers: their weights are what they are.

    Returns
    -------
    nodes : tuple of Node
    same : dict of Value to Value
        For the values that layers of no effect wrote, what they are.
    """
    same: dict[Value, Value] = {}
    nodes = []
    for i in layers:
        layer, link = net.layers[i], net.links[i]
        reads = tuple(same.get(v, v) for v in link.reads)
        if layer.type in _SAME and len(reads) == 1:
            same.update(dict.fromkeys(link.writes, reads[0]))
            continue
        made = None
        if i not in plain and all(v in shapes for v in (*link.reads, *link.writes)):
            made = _compiled(layer, i, reads, link.writes, shapes)
        nodes.append(made or Node("layer", i, reads, link.writes))
    fixed = {i for i in layers if net.layers[i].name in integers}
    return _absorb(nodes, {same.get(v, v) for v in keep}, fixed), same


def _compiled(
    layer: Layer,
    i: int,
    reads: tuple[Value, ...],
    writes: tuple[Value, ...],
    shapes: Mapping[Value, Shape],
) -> Node | None:
    """Return the node of a layer that can be compiled, or None."""
    if len(writes) != 1 or not reads:
        return None
    bottom, top = shapes[reads[0]], shapes[writes[0]]
    if len(bottom) not in (2, 4) or 0 in (*bottom, *top):
        return None
    kind = _kind(layer, reads, bottom, top)
    if kind is not None:
        return Node(kind, i, reads, writes)
    if len(reads) == 2:
        added = layer.type == "Eltwise" and _adds(layer)
        return Node("apply", i, reads[:1], writes, other=reads[1]) if added else None
    return _one_to_one(layer, i, reads, writes, bottom) if len(reads) == 1 else None


def _one_to_one(
    layer: Layer, i: int, reads: tuple[Value, ...], writes: tuple[Value, ...], bottom: Shape
) -> Node | None:
    """Return the node of a layer that maps each value on its own, or None."""
    step = _elementwise(layer, bottom)
    if step is not None:
        return Node("apply", i, reads, writes, slope=step[0], clamp=step[1])
    affine = _affine(layer, bottom[1])
    return None if affine is None else Node("layer", i, reads, writes, affine=affine)


def _kind(layer: Layer, reads: Sequence[Value], bottom: Shape, top: Shape) -> str | None:
    if layer.type == "Concat":
        # along the channels: every other axis is alike
        joins = len(bottom) == 4 and top[0] == bottom[0] and top[2:] == bottom[2:]
        return "concat" if joins and len({*reads}) == len(reads) and top != bottom else None
    if len(reads) != 1:
        return None
    if layer.type in _CONVOLUTIONS and len(bottom) == 4:
        p = conv_params(layer, bottom)
        return _CONVOLUTIONS[layer.type] if p.axis == 1 and layer.blobs else None
    if layer.type == "InnerProduct":
        product = layer.param.inner_product_param
        plain = product.axis % len(bottom) == 1 and not product.transpose
        return "inner" if plain else None
    if layer.type == "Pooling" and len(bottom) == 4:
        return _pool_kind(layer, bottom, top)
    return None


def _pool_kind(layer: Layer, bottom: Shape, top: Shape) -> str | None:
    """Return the kind of a pooling whose windows all meet the image."""
    g = pool_geometry(layer, bottom, top)
    for axis, size in enumerate(bottom[2:]):
        start = np.arange(g.out_size[axis]) * g.stride[axis] - g.pad[axis]
        if (np.minimum(start + g.kernel[axis], size) <= np.maximum(start, 0)).any():
            return None
    return {"MAX": "max", "AVE": "average"}.get(pool_params(layer, bottom).method)


def _adds(layer: Layer) -> bool:
    p = layer.param.eltwise_param
    return p.operation == EltwiseParameter.SUM and all(c == 1 for c in p.coeff)


def _elementwise(
    layer: Layer, bottom: Shape
) -> tuple[np.ndarray | None, tuple[float, float] | None] | None:
    """Return slope and clamp of a layer that has no more than these, or None."""
    if layer.type == "ReLU":
        slope = layer.param.relu_param.negative_slope
        return (None, (0.0, inf)) if slope == 0 else (np.full(bottom[1], slope, np.float32), None)
    if layer.type == "ReLU6" and layer.param.relu6_param.negative_slope == 0:
        return None, (0.0, 6.0)
    if layer.type == "Clip":
        p = layer.param.clip_param
        return None, (p.min, p.max)
    if layer.type == "PReLU":
        slopes = layer.blobs[0].reshape(-1)
        return np.ascontiguousarray(np.broadcast_to(slopes, (bottom[1],))), None
    return None


def _affine(layer: Layer, channels: int) -> Affine | None:
    """Return what a BatchNorm or Scale layer does, if it is the same for every image."""
    if layer.type == "BatchNorm" and uses_global_stats(layer):
        mean, variance, factor = (b.astype(np.float64).reshape(-1) for b in layer.blobs)
        part = 0.0 if factor[0] == 0 else 1 / factor[0]
        k = 1 / np.sqrt(variance * part + layer.param.batch_norm_param.eps)
        return Affine(k, -mean * part * k)
    plain = layer.type == "Scale" and layer.blobs and layer.param.scale_param.axis == 1
    if plain and layer.blobs[0].shape == (channels,):
        k, *shift = (b.astype(np.float64) for b in layer.blobs)
        return Affine(k, shift[0].reshape(-1) if shift else np.zeros(channels))
    return None


def _absorb(
    nodes: Sequence[Node], keep: Collection[Value], fixed: Collection[int]
) -> tuple[Node, ...]:
    """Let nodes take in what alone reads them; the weights of some positions are fixed."""
    readers: dict[Value, list[int]] = {}
    made: dict[Value, int] = {}
    for i, node in enumerate(nodes):
        for v in (*node.reads, *((node.other,) if node.other else ())):
            readers.setdefault(v, []).append(i)
        made.update(dict.fromkeys(node.writes, i))
    out = list(nodes)
    gone: set[int] = set()
    for i, node in enumerate(nodes):
        if i in gone or node.kind not in _HOSTS:
            continue
        host = node
        while True:
            value = host.writes[0]
            users = readers.get(value, [])
            if value in keep or len(users) != 1:
                break
            user = nodes[users[0]]
            if user.affine is not None:
                taken = None if host.position in fixed else _fold(host, user)
            else:
                taken = _join(host, user, i, made) if user.kind == "apply" else None
            if taken is None:
                break
            gone.add(users[0])
            host = taken
        out[i] = host
    return tuple(node for i, node in enumerate(out) if i not in gone)


def _fold(host: Node, user: Node) -> Node | None:
    """Return a weighted host that does the user's scaling, too, if nothing comes between."""
    assert user.affine is not None
    busy = host.slope is not None or host.other is not None or host.clamp is not None
    if busy or host.kind not in _WEIGHTED:
        return None
    affine = user.affine if host.affine is None else host.affine.then(user.affine)
    return replace(host, writes=user.writes, affine=affine)


def _join(host: Node, user: Node, i: int, made: Mapping[Value, int]) -> Node | None:
    """Return the host with the user's work, if one output stage can do both in that order."""
    if host.clamp is not None:
        return None
    other = host.other
    if user.other is not None:
        added = user.other if user.reads[0] == host.writes[0] else user.reads[0]
        early = added != host.writes[0] and made.get(added, -1) < i
        if other is not None or not early or user.slope is not None:
            return None
        other = added
    slope = host.slope
    if user.slope is not None:
        if slope is not None or other is not None:
            return None
        slope = user.slope
    return replace(host, writes=user.writes, other=other, slope=slope, clamp=user.clamp)

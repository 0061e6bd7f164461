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

import numpy as np

from caffeio.graph import Layer, Net, Value
from pipeline.layers import Shape, layer_type
from pipeline.layers.folding import Affine

__all__ = ["Node", "make_nodes"]

_WEIGHTED = frozenset({"conv", "deconv", "inner"})
_HOSTS = _WEIGHTED | {"average", "apply"}


@dataclass(frozen=True)
class Node:
    """One computation.

    Attributes
    ----------
    kind : str
        "conv", "deconv", "inner", "max", "average", "concat", "apply" (element by element),
        "map" (element by element, by the layer), or "layer" (not compiled).
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
        Names of layers that run on integers: nothing is folded into their weights.

    Returns
    -------
    nodes : tuple of Node
    same : dict of Value to Value
        For each value written by a layer of no effect, the value that it equals.
    """
    same: dict[Value, Value] = {}
    nodes = []
    for i in layers:
        layer, link = net.layers[i], net.links[i]
        reads = tuple(same.get(v, v) for v in link.reads)
        if layer_type(layer).identity(layer):
            same.update(dict.fromkeys(link.writes, reads[0]))
            continue
        node = None
        if i not in plain and all(v in shapes for v in (*link.reads, *link.writes)):
            node = _compiled(layer, i, reads, link.writes, shapes)
        nodes.append(node or Node("layer", i, reads, link.writes))
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
    bottoms, top = [shapes[v] for v in reads], shapes[writes[0]]
    if len(bottoms[0]) not in (2, 4) or 0 in (*bottoms[0], *top):
        return None
    step = layer_type(layer).step(layer, bottoms, top)
    if step is None or (step.kind == "concat" and len({*reads}) < len(reads)):
        return None
    if step.kind == "add":
        return Node("apply", i, reads[:1], writes, other=reads[1])
    if step.kind == "affine":
        return Node("layer", i, reads, writes, affine=step.affine)
    return Node(step.kind, i, reads, writes, slope=step.slope, clamp=step.clamp)


def _absorb(
    nodes: Sequence[Node], keep: Collection[Value], fixed: Collection[int]
) -> tuple[Node, ...]:
    """Merge into each node its only readers; layers at `fixed` positions keep their weights."""
    readers: dict[Value, list[int]] = {}
    writers: dict[Value, int] = {}
    for i, node in enumerate(nodes):
        for v in (*node.reads, *((node.other,) if node.other else ())):
            readers.setdefault(v, []).append(i)
        writers.update(dict.fromkeys(node.writes, i))
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
                merged = None if host.position in fixed else _fold(host, user)
            else:
                merged = _join(host, user, i, writers) if user.kind == "apply" else None
            if merged is None:
                break
            gone.add(users[0])
            host = merged
        out[i] = host
    return tuple(node for i, node in enumerate(out) if i not in gone)


def _fold(host: Node, user: Node) -> Node | None:
    """Fold the user's affine map into the host; None where its weights cannot take it."""
    assert user.affine is not None
    busy = host.slope is not None or host.other is not None or host.clamp is not None
    if busy or host.kind not in _WEIGHTED:
        return None
    affine = user.affine if host.affine is None else host.affine.then(user.affine)
    return replace(host, writes=user.writes, affine=affine)


def _join(host: Node, user: Node, i: int, writers: Mapping[Value, int]) -> Node | None:
    """Merge the user into the host's output stage; None where one stage cannot do both."""
    if host.clamp is not None:
        return None
    other = host.other
    if user.other is not None:
        added = user.other if user.reads[0] == host.writes[0] else user.reads[0]
        early = added != host.writes[0] and writers.get(added, -1) < i
        if other is not None or not early or user.slope is not None:
            return None
        other = added
    slope = host.slope
    if user.slope is not None:
        if slope is not None or other is not None:
            return None
        slope = user.slope
    return replace(host, writes=user.writes, other=other, slope=slope, clamp=user.clamp)

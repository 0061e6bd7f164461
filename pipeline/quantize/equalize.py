"""Channels of like range: factors moved between the weights that make and that read a channel.

One scale serves all channels of a layer's data, so a channel of small range has few levels. Where
only layers that pass a factor on (``f(k * x) = k * f(x)``: ReLU, pooling, sums, Concat) lie between
the weights that make a channel and those that read it, the first are multiplied by k and the
second divided by it: the net computes the same, and the channel has k times the levels. After
Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction" (2019).

What carries one factor is found by joining channels: all that a Convolution or InnerProduct
makes are its own, and each layer that passes factors on joins those of its bottoms and tops.
Behind ReLU6 or Clip a factor holds only up to the bound, so that k leaves the largest value
seen in calibration a margin below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

import numpy as np

from caffeio import Layer, Net, Value
from pipeline.layers import Shape, layer_type
from pipeline.layers.folding import Affine
from pipeline.quantize.assign import LayerPlan
from pipeline.quantize.fuse import shared_parameters

__all__ = ["ChannelRanges", "Equalized", "equalize"]

#: A factor is at most this.
_LARGEST = 64.0
#: Powers of the ratio of ranges: for channels that only depthwise layers read, and for others.
_ALONE, _SHARED = 0.75, 0.25

#: Least and greatest value of each channel, float32 (C,) each.
ChannelRanges = Mapping[Value, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Equalized:
    """A net that computes the same, with channels of like range.

    Attributes
    ----------
    net : Net
    channels : int
        How many have got a factor.
    left_alone : tuple of str
        Quantized layers none of whose input channels could get one.
    """

    net: Net
    channels: int
    left_alone: tuple[str, ...]


class _Classes:
    """Channels that share a factor, by union and find; class 0 is of those that have none."""

    def __init__(self) -> None:
        self._parent = [0]

    def new(self, count: int) -> np.ndarray:
        """Return as many classes of their own."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, node: int) -> int:
        """Return the class that stands for a node's."""
        parent = self._parent
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Let channels share their factors, one by one; what joins class 0 has none."""
        for pair in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted(map(self.find, pair))
            self._parent[high] = low

    def pin(self, nodes: np.ndarray) -> None:
        """Let channels have no factor."""
        self.join(nodes, np.zeros_like(nodes))

    def of(self, nodes: np.ndarray) -> np.ndarray:
        """Return the classes that stand for those of some channels."""
        return np.array([self.find(node) for node in nodes.tolist()], np.int64)


def equalize(
    net: Net,
    shapes: Mapping[Value, Shape],
    ranges: ChannelRanges,
    plans: Mapping[str, LayerPlan],
    outputs: Iterable[str],
    *,
    margin: float = 2.0,
) -> Equalized:
    """Multiply channels by factors that make their ranges alike.

    With r the range of the widest channel over its own, a channel gets the factor r^0.75 if only
    depthwise layers read it, whose weights have a scale for each channel, and else r^0.25, for its
    readers' weights lose what it wins. (Measured on MobileNetV2, all corrections on: 0.75 and 0.25
    give 21.4 dB, 1 and 0.5 20.7, 0.5 and 0.5 20.7.)

    Parameters
    ----------
    net : Net
        Fused, with weights.
    shapes : mapping of Value to shape
    ranges : mapping of Value to (lows, highs)
        Of the channels of each value, as calibration saw them.
    plans : mapping of layer name to LayerPlan
        The layers that will read integers. One whose weights have one scale for all channels keeps
        its output channels as they are.
    outputs : iterable of str
        Blobs that must stay as they are, besides the net's own outputs.
    margin : float
        Above 1: how far from a bound a channel's largest value stays.

    Returns
    -------
    Equalized
    """
    classes = _Classes()
    channels = _join(net, shapes, plans, classes)
    for name in {*outputs, *net.outputs}:
        for value in net.readers:
            if value.blob == name:
                classes.pin(channels[value])
    roots = {value: classes.of(nodes) for value, nodes in channels.items()}
    size = 1 + max((int(r.max()) for r in roots.values() if r.size), default=0)
    factors = _factors(net, ranges, roots, plans, size, margin)
    layers = tuple(_scaled(net, i, roots, factors) for i in range(len(net.layers)))
    touched = {int(c) for r in roots.values() for c in r[factors[r] > 1]}
    left = tuple(
        layer.name
        for layer, link in zip(net.layers, net.links, strict=True)
        if layer.name in plans and layer.blobs and not roots[link.reads[0]].any()
    )
    return Equalized(net.with_layers(layers), len(touched), left)


def _join(
    net: Net,
    shapes: Mapping[Value, Shape],
    plans: Mapping[str, LayerPlan],
    classes: _Classes,
) -> dict[Value, np.ndarray]:
    """Return the class of each channel of each value, joined over all layers."""
    fixed = shared_parameters(net)
    channels: dict[Value, np.ndarray] = {}
    for layer, link in zip(net.layers, net.links, strict=True):
        for value in link.writes:
            shape = shapes.get(value, ())
            channels[value] = classes.new(shape[1] if len(shape) > 1 else 0)
        bottoms = [channels[v] for v in link.reads]
        tops = [channels[v] for v in link.writes]
        if link.reads and _passes(layer, shapes.get(link.reads[0], ()), bottoms, tops, classes):
            continue
        if layer.name not in fixed and _takes_both(layer, bottoms, tops):
            plan = plans.get(layer.name)
            if plan is not None and not plan.channel_wise:
                classes.pin(tops[0])
            continue
        for nodes in (*bottoms, *tops):
            classes.pin(nodes)
    return channels


def _passes(
    layer: Layer,
    shape: Shape,
    bottoms: list[np.ndarray],
    tops: list[np.ndarray],
    classes: _Classes,
) -> bool:
    """Join the channels of a layer that passes factors on; say whether it does."""
    if len(shape) < 2:
        return False
    kind = layer_type(layer).factors(layer, len(shape)).kind
    if kind == "kept" and len({nodes.size for nodes in (*bottoms, *tops)}) == 1:
        for nodes in (*bottoms[1:], *tops):
            classes.join(bottoms[0], nodes)
        return True
    if kind in ("joined", "cut"):
        first, second = np.concatenate(bottoms), np.concatenate(tops)
        if first.size == second.size:
            classes.join(first, second)
            return True
    return False


def _takes_both(layer: Layer, bottoms: list[np.ndarray], tops: list[np.ndarray]) -> bool:
    """Whether a layer's weights take the factors of its input and of its output channels."""
    if len(bottoms) != 1 or len(tops) != 1 or not layer.blobs:
        return False
    kind = layer_type(layer)
    ones, outs = np.ones(bottoms[0].size), np.ones(tops[0].size)
    if not ones.size or kind.takes_factors(layer, ones) is None:
        return False
    return kind.takes_behind(layer, Affine(outs, np.zeros(outs.size))) is not None


def _factors(
    net: Net,
    ranges: ChannelRanges,
    roots: Mapping[Value, np.ndarray],
    plans: Mapping[str, LayerPlan],
    size: int,
    margin: float,
) -> np.ndarray:
    """Return the factor of each class, float64, 1 or more."""
    wanted, limits = np.full(size, inf), np.full(size, _LARGEST)
    for layer, link in zip(net.layers, net.links, strict=True):
        for value in link.reads:
            if value not in ranges or not roots[value].any():
                continue
            low, high = (x.astype(np.float64) for x in ranges[value])
            bounds = layer_type(layer).factors(layer, 4)
            for reach, bound in ((high, bounds.high), (-low, -bounds.low)):
                if 0 < bound < inf:
                    room = bound / (margin * np.maximum(reach, bound / _LARGEST))
                    np.minimum.at(limits, roots[value], room)
            if layer.name in plans and layer.blobs:
                reach = np.maximum(np.abs(low), np.abs(high))
                # a channel that was never used gets no factor
                ratio = reach.max() / np.where(reach > 0, reach, reach.max() or 1.0)
                w = layer.blobs[0]
                alone = plans[layer.name].channel_wise and w.shape[:2] == (reach.size, 1)
                np.minimum.at(wanted, roots[value], ratio ** (_ALONE if alone else _SHARED))
    wanted[wanted == inf] = 1.0
    wanted[0] = 1.0
    return np.maximum(np.minimum(wanted, limits), 1.0)


def _scaled(net: Net, i: int, roots: Mapping[Value, np.ndarray], factors: np.ndarray) -> Layer:
    """Return a layer with the factors of its channels in its weights."""
    layer, link = net.layers[i], net.links[i]
    kind = layer_type(layer)
    if not layer.blobs or len(link.reads) != 1 or len(link.writes) != 1:
        return layer
    before, behind = factors[roots[link.reads[0]]], factors[roots[link.writes[0]]]
    if (before > 1).any():
        layer = kind.takes_factors(layer, 1 / before) or layer
    if (behind > 1).any():
        layer = kind.takes_behind(layer, Affine(behind, np.zeros(behind.size))) or layer
    return layer

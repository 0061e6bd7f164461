"""What a run would do, found without computing: layers, rules, shapes, MACs, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from caffeio import NetError, Value
from pipeline.layers import Shape, layer_type
from pipeline.quantize.assign import LayerPlan
from pipeline.quantize.eligibility import Verdict
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.schedule import schedule

__all__ = ["LayerCost", "NetCost", "net_cost"]


@dataclass(frozen=True)
class LayerCost:
    """One layer: what becomes of it and what it costs for one sample.

    Attributes
    ----------
    layer, type : str
    quantize : bool
    reason : str
        The rule that keeps it in float.
    method : str
        How its scale would be searched; empty in float.
    bottom, top : tuple of int
        Shapes of its first bottom and top, batch 1.
    macs : int
        Multiplications with additions; additions for AVE pooling.
    weights : int
        Numbers in its blobs.
    """

    layer: str
    type: str
    quantize: bool
    reason: str
    method: str
    bottom: Shape
    top: Shape
    macs: int
    weights: int


@dataclass(frozen=True)
class NetCost:
    """The whole net.

    Attributes
    ----------
    layers : tuple of LayerCost
    peak_values : int
        Most numbers alive at once for one sample, in the float net.
    """

    layers: tuple[LayerCost, ...]
    peak_values: int

    @property
    def macs(self) -> int:
        """All MACs of one sample."""
        return sum(layer.macs for layer in self.layers)

    @property
    def int8_macs(self) -> int:
        """MACs of the layers that are quantized."""
        return sum(layer.macs for layer in self.layers if layer.quantize)


def net_cost(
    net: FloatNet,
    verdicts: tuple[Verdict, ...],
    plans: Mapping[str, LayerPlan],
    input_shapes: Mapping[str, Shape],
) -> NetCost:
    """Work out what a net costs for one sample.

    Parameters
    ----------
    net : FloatNet
        Of the fused net.
    verdicts : tuple of Verdict
        One for each of its layers.
    plans : mapping of layer name to LayerPlan
        Of the layers to quantize.
    input_shapes : mapping of blob name to shape
        Of inputs whose shape the prototxt does not give.
    """
    shapes = _one_sample(net, input_shapes)
    layers = []
    for layer, link, verdict in zip(net.net.layers, net.net.links, verdicts, strict=True):
        bottom = shapes.get(link.reads[0], ()) if link.reads else ()
        top = shapes.get(link.writes[0], ()) if link.writes else ()
        plan = plans.get(layer.name)
        layers.append(
            LayerCost(
                layer.name,
                layer.type,
                verdict.quantize,
                verdict.reason,
                type(plan.method).__name__.lower() if plan else "",
                bottom,
                top,
                layer_type(layer).macs(layer, bottom, top) if bottom and top else 0,
                sum(blob.size for blob in layer.blobs),
            )
        )
    return NetCost(tuple(layers), _peak(net, shapes))


def _one_sample(net: FloatNet, input_shapes: Mapping[str, Shape]) -> dict[Value, Shape]:
    """Return all shapes for a batch of 1, where the net lets the batch change."""
    shapes = net.shapes(input_shapes)
    inputs = {v.blob: shape for v, shape in shapes.items() if v.blob in net.net.inputs}
    if len({shape[0] for shape in inputs.values() if shape}) == 1:
        try:
            return net.shapes({blob: (1, *shape[1:]) for blob, shape in inputs.items()})
        except NetError:  # its layers are made for this batch
            return shapes
    return shapes


def _peak(net: FloatNet, shapes: Mapping[Value, Shape]) -> int:
    """Return the most numbers alive at once, freeing as the executor does."""
    steps = schedule(net.net, {v.blob for v in shapes if v.blob in net.net.inputs})
    alive = {v: prod(shapes[v]) for v in shapes if v.version == 0 and v.blob in net.net.inputs}
    peak = sum(alive.values())
    for i, dead in zip(steps.layers, steps.frees, strict=True):
        for value in net.net.links[i].writes:
            alive[value] = prod(shapes.get(value, (0,)))
        peak = max(peak, sum(alive.values()))
        for value in dead:
            alive.pop(value, None)
    return peak

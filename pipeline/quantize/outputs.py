"""Which blobs of a net show what quantization costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from caffeio import Layer, Net, Value
from pipeline.errors import ConfigError
from pipeline.layers import LayerType, layer_type
from pipeline.runtime.schedule import last_values, schedule
from pipeline.runtime.shapes import behind_data

__all__ = ["compared_blobs", "detection_blobs"]


def compared_blobs(net: Net, asked: Sequence[str]) -> tuple[str, ...]:
    """Return the blobs to compare: those asked for, else the net's outputs.

    An output made by Softmax is joined by what Softmax reads, which shows more of the error; one
    made by a loss or Accuracy layer is replaced by what that reads. So is one whose rows depend
    on the data (detections, and what is computed from proposals): two models' rows are not of the
    same things. What does not depend on the inputs' values (prior boxes) is left out.

    Raises
    ------
    ConfigError
        If the net has no blob of that name, or its rows depend on the data.
    """
    graph = _Graph(net)
    last = last_values(net)
    for name in asked:
        if name not in last:
            raise ConfigError(f"evaluate.outputs: net '{net.name}' has no blob '{name}'")
        if last[name] in graph.rows:
            instead = ", ".join(dict.fromkeys(v.blob for v in graph.comparable(last[name])))
            raise ConfigError(
                f"evaluate.outputs: how many rows '{name}' has depends on the data, so rows cannot "
                f"be compared; name {instead}, which it is computed from"
            )
    if asked:
        return tuple(asked)
    results = schedule(net, net.inputs).results.values()
    values = [v for result in results for v in graph.comparable(result)]
    shown = [v.blob for v in values if last[v.blob] == v]
    changing = [blob for blob in shown if last[blob] not in graph.constant]
    return tuple(dict.fromkeys(changing or shown))


def detection_blobs(net: Net) -> tuple[str, ...]:
    """Return the outputs that hold a detected box a row."""
    graph = _Graph(net)
    results = schedule(net, net.inputs).results.items()
    return tuple(b for b, v in results if v in graph.makers and graph.kind(v).detections)


class _Graph:
    """What follows from where each value comes from."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.kinds = [layer_type(layer) for layer in net.layers]
        self.makers = {
            value: i
            for i, (layer, link) in enumerate(zip(net.layers, net.links, strict=True))
            if not layer.is_source
            for value in link.writes
        }

    def kind(self, value: Value) -> LayerType:
        """Return what made a value."""
        return self.kinds[self.makers[value]]

    @cached_property
    def rows(self) -> frozenset[Value]:
        """The values whose number of rows depends on the data."""
        makers = behind_data(self.net, self.kinds)
        makers |= {i for i, kind in enumerate(self.kinds) if kind.data_dependent}
        return frozenset(v for i in makers for v in self.net.links[i].writes)

    @cached_property
    def constant(self) -> frozenset[Value]:
        """The values that do not depend on those of the inputs."""
        found: set[Value] = set()
        layers: zip[tuple[Layer, LayerType]] = zip(self.net.layers, self.kinds, strict=True)
        for (layer, kind), link in zip(layers, self.net.links, strict=True):
            if not layer.is_source and (kind.shape_only or found.issuperset(link.reads)):
                found.update(link.writes)
        return frozenset(found)

    def comparable(self, value: Value) -> Iterator[Value]:
        """Yield a value, or those that stand for it."""
        if value not in self.makers:  # an input
            return
        reads, kind = self.net.links[self.makers[value]].reads, self.kind(value)
        if kind.measures:
            yield reads[0]
        elif value in self.rows:
            for read in reads:
                yield from self.comparable(read)
        else:
            if kind.saturates:
                yield reads[0]
            yield value

"""What is known of a net before it runs: the shapes of its values, and its inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from caffeio.errors import NetError
from caffeio.graph import Layer, Net, Value
from pipeline.layers import LayerType, Shape
from pipeline.layers.check import check_room
from pipeline.layers.source import declared_shapes
from pipeline.runtime.schedule import optional_inputs, schedule

__all__ = ["behind_data", "check_inputs", "infer", "input_shapes"]


def input_shapes(net: Net) -> dict[str, Shape | None]:
    """Return the shape that the prototxt gives each input; None where it gives none."""
    return {
        top: shape
        for layer in net.layers
        if layer.is_source
        for top, shape in zip(layer.tops, declared_shapes(layer), strict=False)
    }


def check_inputs(
    declared: Mapping[str, Shape | None], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the inputs as float32 arrays in C order, having checked each one's shape.

    Parameters
    ----------
    declared : mapping of str to shape or None
        From `input_shapes`.
    inputs : mapping of str to array

    Raises
    ------
    caffeio.NetError
        If one is empty, not numeric, or has not the rank, or (as a 4-D image) not the
        channels, that the prototxt gives.
    """
    arrays = {}
    for name, value in inputs.items():
        try:
            x = np.asarray(value, dtype=np.float32, order="C")
        except (TypeError, ValueError) as error:
            raise NetError(f"input '{name}' is not an array of numbers: {error}") from error
        want = declared.get(name)
        wrong = want is not None and (
            x.ndim != len(want) or (x.ndim == 4 and x.shape[1] != want[1])
        )
        if wrong or not x.size:
            free = "" if want is None else f", the net needs {_free_batch(want)}"
            raise NetError(f"input '{name}' has shape {x.shape}{free}")
        arrays[name] = x
    return arrays


def behind_data(net: Net, types: Sequence[LayerType]) -> frozenset[int]:
    """Return the positions of layers whose bottoms' shapes depend on values."""
    unsure: set[Value] = set()
    positions = set()
    for i, (kind, link) in enumerate(zip(types, net.links, strict=True)):
        if unsure.intersection(link.reads):
            positions.add(i)
            unsure.update(link.writes)
        if kind.data_dependent:
            unsure.update(link.writes)
    return frozenset(positions)


def infer(
    net: Net,
    types: Sequence[LayerType],
    given: Mapping[str, Shape],
    layers: Collection[int] | None = None,
) -> dict[Value, Shape]:
    """Return the shape of every value that does not depend on a missing label.

    Parameters
    ----------
    net : Net
    types : sequence of LayerType
        Of each layer.
    given : mapping of str to shape
        Of inputs; for others the prototxt's own are taken.
    layers : collection of int, optional
        Positions of the layers that matter; by default all. Others, which these shapes
        may not fit, are left out.
    """
    schedule(net, {*given, *net.inputs})
    optional = optional_inputs(net)
    shapes: dict[Value, Shape] = {}
    for i, (layer, kind, link) in enumerate(zip(net.layers, types, net.links, strict=True)):
        if layer.is_source:
            made = _source_shapes(layer, link.writes, given, optional)
            check_room(layer, [*made.values()])
            shapes.update(made)
        elif not kind.computes:
            continue
        elif (layers is None or i in layers) and all(v in shapes for v in link.reads):
            tops = _shapes_of(layer, kind, [shapes[v] for v in link.reads])
            check_room(layer, tops)
            shapes.update(zip(link.writes, tops, strict=True))
    return shapes


def _shapes_of(layer: Layer, kind: LayerType, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    try:
        return kind.shapes(layer, bottoms)
    except (ArithmeticError, MemoryError) as error:  # of numbers that no net in use has
        raise NetError(f"its sizes are out of range: {error!r}", layer.name) from error


def _free_batch(shape: Shape) -> str:
    """Write a shape with its batch size left open."""
    return f"({', '.join(['N', *map(str, shape[1:])])})"


def _source_shapes(
    layer: Layer, writes: Sequence[Value], sizes: Mapping[str, Shape], optional: frozenset[str]
) -> dict[Value, Shape]:
    """Return the shapes of a source's tops: as given, else the prototxt's."""
    shapes = {}
    declared = declared_shapes(layer)
    for value, own in zip(writes, (*declared, *(None,) * len(writes)), strict=False):
        shape = sizes.get(value.blob, None if value.blob in optional else own)
        if shape is not None:
            shapes[value] = shape
        elif value.blob not in optional:
            raise NetError(
                f"the prototxt does not give the shape of blob '{value.blob}'; pass it "
                "as an input shape",
                layer.name,
            )
    return shapes

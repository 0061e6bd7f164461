"""A net with what is known of it before it runs: types, shapes, schedules, its layers' forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from caffeio.graph import Net, Value
from pipeline.layers import TABLE, Shape, layer_type
from pipeline.layers.base import Kept
from pipeline.layers.int8 import INT8_TYPES, QuantizedLayer
from pipeline.runtime.loop import Forward
from pipeline.runtime.recent import Recent
from pipeline.runtime.schedule import Schedule, schedule
from pipeline.runtime.shapes import behind_data, infer, input_shapes

__all__ = ["Model", "Request", "Shapes"]

#: Inputs by name, sorted, with their shapes.
Shapes = tuple[tuple[str, Shape], ...]


@dataclass(frozen=True)
class Request:
    """What is asked of one forward pass.

    Attributes
    ----------
    arrays : dict of blob name to array
        Clean inputs.
    blobs : tuple of str or None
        Names of blobs to return; None: the outputs.
    kept : dict of int to arrays
        What recurrent layers remember, by position; changed by the pass.
    """

    arrays: Mapping[str, np.ndarray]
    blobs: tuple[str, ...] | None
    kept: dict[int, Kept]

    @cached_property
    def shapes(self) -> Shapes:
        """The inputs' shapes."""
        return tuple(sorted((name, x.shape) for name, x in self.arrays.items()))


class Model:
    """A net, some of whose layers run on integers.

    Parameters
    ----------
    net : Net
    numbers : mapping of layer name to QuantizedLayer
    device : str

    Attributes
    ----------
    types : tuple of LayerType
        Of each layer.
    declared : dict of input name to shape or None
        As the prototxt has it.
    unsure : frozenset of int
        Positions of layers behind one whose tops' shapes depend on values.

    Raises
    ------
    caffeio.NetError
        If a layer's type is refused, or known in another case.
    """

    def __init__(self, net: Net, numbers: Mapping[str, QuantizedLayer], device: str) -> None:
        self.net, self.numbers, self.device = net, numbers, device
        self.types = tuple(layer_type(layer) for layer in net.layers)
        for layer, kind in zip(net.layers, self.types, strict=True):
            if layer.is_source and kind is not TABLE["Input"]:
                kind.shapes(layer, ())  # no source of a fork: it lacks its bottoms, and says so
        self.declared = input_shapes(net)
        self.unsure = behind_data(net, self.types)
        self._shapes: Recent[Shapes, dict[Value, Shape]] = Recent(16)
        self._schedules: Recent[tuple, Schedule] = Recent(16)

    def shapes(self, given: Shapes) -> dict[Value, Shape]:
        """Return the shape of every value, see `pipeline.runtime.shapes.infer`."""
        return self._shapes.of(given, lambda: infer(self.net, self.types, dict(given)))

    def schedule(
        self, given: Sequence[str], blobs: tuple[str, ...] | None, everything: bool = False
    ) -> Schedule:
        """Return what a pass runs; `everything`: all layers, whatever the blobs need."""
        key = tuple(sorted(given)), blobs, everything
        return self._schedules.of(
            key, lambda: schedule(self.net, key[0], blobs, everything=everything)
        )

    def checked(self, position: int, bottoms: Sequence[np.ndarray]) -> None:
        """Check a layer again, with the true shapes, if they depend on values."""
        if position in self.unsure:
            layer = self.net.layers[position]
            self.types[position].shapes(layer, [x.shape for x in bottoms])

    def operation(self, position: int, kept: dict[int, Kept] | None = None) -> Forward:
        """Return the computation of one layer on the model's device, from host arrays.

        Parameters
        ----------
        position : int
        kept : dict of int to arrays, optional
            What layers remember; changed as they run. Without it they begin anew.
        """
        layer, kind = self.net.layers[position], self.types[position]
        numbers = self.numbers.get(layer.name)
        if numbers is not None:
            integers = INT8_TYPES[layer.type].forward
            return lambda bottoms: (integers(layer, numbers, bottoms[0], self.device),)

        def forward(bottoms: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
            self.checked(position, bottoms)
            if kind.resume is not None and kept is not None:
                tops, kept[position] = kind.resume(layer, bottoms, kept.get(position, ()))
                return tops
            return kind.forward(layer, bottoms, self.device)

        return forward

"""A float net and the quantized one that becomes of it, run side by side, layer after layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from caffeio import Value
from pipeline.layers.base import Kept
from pipeline.quantize.activations import Activations
from pipeline.runtime.loop import Forward, guarded
from pipeline.runtime.model import Model

__all__ = ["NetPair"]

Inputs = Mapping[str, np.ndarray]


class NetPair:
    """The values of the float net and of the quantized one, of all parts."""

    def __init__(self, model: Model, values: Activations, parts: Sequence[Inputs]) -> None:
        self.model, self.net, self.count = model, model.net, len(parts)
        self._values = values
        self._kept: dict[bool, dict[int, Kept]] = {False: {}, True: {}}
        self._equal: set[Value] = set()
        for layer, link in zip(self.net.layers, self.net.links, strict=True):
            for value in link.writes if layer.is_source else ():
                if value.blob in parts[0]:
                    self._equal.add(value)
                    for part, inputs in enumerate(parts):
                        values.put((False, value, part), inputs[value.blob])

    def get(self, quantized: bool, value: Value, part: int) -> np.ndarray:
        """Return a value of one part."""
        return self._values.get((quantized and value not in self._equal, value, part))

    def put(self, quantized: bool, value: Value, part: int, array: np.ndarray) -> None:
        """Keep a value of one part."""
        self._values.put((quantized, value, part), array)

    def drop(self, dead: Sequence[Value]) -> None:
        """Forget values that nobody reads any more."""
        for value in dead:
            for part in range(self.count):
                self._values.drop((False, value, part))
                self._values.drop((True, value, part))

    def run(self, i: int) -> None:
        """Run a layer that is not quantized, in both nets; once where both read the same."""
        reads = self.net.links[i].reads
        same = all(value in self._equal for value in reads)
        if same:
            self._equal.update(self.net.links[i].writes)
        for quantized in (False,) if same else (False, True):
            operation = self.model.operation(i, self._kept[quantized])
            for part in range(self.count):
                self._step(i, quantized, part, operation)

    def run_float(self, i: int) -> None:
        """Run a quantized layer in the float net."""
        operation = self.model.operation(i, self._kept[False])
        for part in range(self.count):
            self._step(i, False, part, operation)

    def _step(self, i: int, quantized: bool, part: int, operation: Forward) -> None:
        link = self.net.links[i]
        bottoms = [self.get(quantized, value, part) for value in link.reads]
        tops = guarded(self.net.layers[i], bottoms, operation)
        for value, top in zip(link.writes, tops, strict=True):
            self.put(quantized, value, part, top)

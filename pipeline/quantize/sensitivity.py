"""Which layer loses how much: each one quantized alone, and each one alone left in float.

The float net and the quantized net run once over a few samples, and their values are kept; for
each layer only what lies behind it runs again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import kernels
from caffeio import Net, Value
from pipeline.layers import layer_type
from pipeline.layers.int8 import INT8_TYPES
from pipeline.quantize.activations import Activations
from pipeline.quantize.corrections import Corrected
from pipeline.quantize.evaluate import fake_layer
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.measure import Closeness, mean_decibels
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.loop import Observer
from pipeline.runtime.restart import Rest, rest_behind
from pipeline.runtime.schedule import last_values

__all__ = ["Sensitivity", "half_of_the_noise", "sensitivities"]

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Sensitivity:
    """What one layer loses: the mean of the samples' dB at the net's outputs.

    Attributes
    ----------
    layer, type : str
    alone : float
        With nothing quantized but this layer.
    weights, data : float
        With only its weights (and bias), or only its data quantized; inf for what it has not.
    without : float
        With all layers quantized but this one.
    """

    layer: str
    type: str
    alone: float
    weights: float
    data: float
    without: float


def sensitivities(
    net: Net,
    quantized: Corrected,
    parts: Sequence[Inputs],
    blobs: Sequence[str],
    *,
    device: str = "cpu",
    memory: int = 2 << 30,
    progress: Callable[[Iterable[str]], Iterable[str]] = lambda names: names,
) -> tuple[Sensitivity, ...]:
    """Measure every quantized layer.

    Parameters
    ----------
    net : Net
        Fused, float.
    quantized : Corrected
        What it has become.
    parts : sequence of dict of blob name to array
        A few samples, in batches.
    blobs : sequence of str
        Outputs to compare.
    device : str
    memory : int
        Bytes of values to hold at a time.
    progress : callable
        Takes the layers' names and yields them.

    Returns
    -------
    tuple of Sensitivity
        The worst first: by what each loses alone.
    """
    int8 = Int8Net.of_fused(quantized.net, quantized.record, device=device)
    with Activations(memory) as values:
        _keep(net, parts, values, False, FloatNet(net, device=device))
        _keep(net, parts, values, True, int8)
        probe = _Probe(net, int8, len(parts), values, tuple(blobs), device)
        positions = {layer.name: i for i, layer in enumerate(net.layers)}
        names = [layer.name for layer in net.layers if layer.name in int8.layers]
        found = [probe.measure(positions[name]) for name in progress(names)]
    return tuple(sorted(found, key=lambda s: s.alone))


def half_of_the_noise(layers: Sequence[Sensitivity]) -> tuple[str, ...]:
    """Return the fewest layers that together make half of what all lose alone."""
    noise = {s.layer: 10 ** (-s.alone / 10) for s in layers if math.isfinite(s.alone)}
    left, names = sum(noise.values()) / 2, []
    for name in sorted(noise, key=lambda n: -noise[n]):
        if left <= 0:
            break
        names.append(name)
        left -= noise[name]
    return tuple(names)


def _keep(
    net: Net,
    parts: Sequence[Inputs],
    values: Activations,
    quantized: bool,
    runner: FloatNet | Int8Net,
) -> None:
    """Run a net and keep all its values."""
    for part, inputs in enumerate(parts):
        for layer, link in zip(net.layers, net.links, strict=True):
            for value in link.writes if layer.is_source else ():
                if value.blob in inputs:
                    array = np.asarray(inputs[value.blob], np.float32)
                    values.put((quantized, value, part), array)
        runner.forward(inputs, observer=_keeper(net, values, quantized, part))


def _keeper(net: Net, values: Activations, quantized: bool, part: int) -> Observer:
    def keep(
        i: int, layer: object, bottoms: Sequence[np.ndarray], tops: Sequence[np.ndarray]
    ) -> None:
        for value, top in zip(net.links[i].writes, tops, strict=True):
            values.put((quantized, value, part), top)

    return keep


@dataclass(frozen=True)
class _Probe:
    """Changes one layer and looks at the outputs."""

    net: Net
    int8: Int8Net
    parts: int
    values: Activations
    blobs: tuple[str, ...]
    device: str

    def measure(self, position: int) -> Sensitivity:
        layer, link = self.net.layers[position], self.net.links[position]
        q = self.int8.layers[layer.name]
        kind, fake = layer_type(layer), fake_layer(self.int8.net.layers[position], q)
        integers = INT8_TYPES[layer.type].forward
        read = link.reads[0]

        def rounded(part: int) -> np.ndarray:
            return kernels.fake_quantize(self._value(False, read, part), q.data, device=self.device)

        ways: dict[str, Callable[[int], np.ndarray]] = {
            "alone": lambda p: integers(layer, q, self._value(False, read, p), self.device),
            "weights": lambda p: kind.forward(fake, [self._value(False, read, p)], self.device)[0],
            "data": lambda p: kind.forward(layer, [rounded(p)], self.device)[0],
        }
        plain = rest_behind(self.net, position, self.blobs, {}, device=self.device)
        found = {name: self._closeness(plain, False, way) for name, way in ways.items()}
        if q.weights is None:
            found["weights"] = math.inf
        others = {name: n for name, n in self.int8.layers.items() if name != layer.name}
        rest = rest_behind(self.int8.net, position, self.blobs, others, device=self.device)
        without = self._closeness(
            rest, True, lambda p: kind.forward(layer, [self._value(True, read, p)], self.device)[0]
        )
        return Sensitivity(layer.name, layer.type, without=without, **found)

    def _closeness(self, rest: Rest, quantized: bool, top: Callable[[int], np.ndarray]) -> float:
        """Return how close the outputs are to the float net's if the layer makes another top.

        In the float net, outputs that the layer does not reach are what they are.
        """
        closeness = {blob: Closeness() for blob in (self.blobs if quantized else rest.results)}
        for part in range(self.parts):
            outputs = self._outputs(rest, quantized, part, top(part))
            for blob, found in closeness.items():
                value = last_values(self.net)[blob]
                exact = self._value(False, value, part)
                y = outputs[blob] if blob in outputs else self._value(quantized, value, part)
                if y.shape == exact.shape:
                    found.update(exact, y)
        return mean_decibels(c.sample_sqnr for c in closeness.values() if c.decibels)

    def _outputs(
        self, rest: Rest, quantized: bool, part: int, top: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the outputs behind the layer, by blob."""
        if rest.runner is None:
            return dict.fromkeys(rest.results, top)
        given = {
            str(v): top if v == rest.top else self._value(quantized, v, part) for v in rest.needs
        }
        names = {blob: str(value) for blob, value in rest.results.items()}
        outputs = rest.runner.forward(given, [*names.values()])
        return {blob: outputs[name] for blob, name in names.items()}

    def _value(self, quantized: bool, value: Value, part: int) -> np.ndarray:
        return self.values.get((quantized, value, part))

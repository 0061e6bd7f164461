"""Corrections as values: what is changed in each layer, and the net and record that result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from caffeio import Layer, Net
from caffeio.record import LayerRecord, Record
from kernels import QuantParams
from pipeline.errors import PipelineError
from pipeline.quantize.integers import quantize_layer, with_data

__all__ = ["Corrected", "LayerCorrection", "Steps", "applied"]


@dataclass(frozen=True)
class Steps:
    """Which corrections are made.

    Attributes
    ----------
    rounding : bool
        Compensated instead of nearest.
    bias, gain : bool
    search : bool
        The range of the data is chosen by the error of the layer's output.
    """

    rounding: bool = True
    bias: bool = True
    gain: bool = True
    search: bool = False


@dataclass(frozen=True)
class LayerCorrection:
    """What one layer's integers have become.

    Attributes
    ----------
    weights : int8 array or None
        Of compensated rounding.
    gain : float64 array, as long as the layer's scale_w
    shift : float64 array (O,)
        What is added to the bias after gain.
    plain_shift : float64 array (O,)
        What would be added without gain.
    data : QuantParams or None
        Of its input, if another than the record's.
    few : int8 array or None
        Weights rounded to the nearest of few levels, where the layer keeps no others.
    before, after : float
        SQNR of its output with all corrected layers before it, in dB, on the judging samples:
        without its own corrections, and with them.
    """

    weights: np.ndarray | None
    gain: np.ndarray
    shift: np.ndarray
    plain_shift: np.ndarray
    data: QuantParams | None = None
    few: np.ndarray | None = None
    before: float = math.nan
    after: float = math.nan

    @property
    def summary(self) -> str:
        """What was changed, in one line."""
        rounding = "nearest" if self.weights is None else "compensated"
        largest = np.abs(self.shift).max(initial=0.0)
        data = "" if self.data is None else f", data by {self.data}"
        return (
            f"rounding {rounding}, bias moved by up to {largest:.4g}, gain "
            f"{self.gain.min(initial=np.inf):.4g} to {self.gain.max(initial=-np.inf):.4g}{data}"
        )


@dataclass(frozen=True)
class Corrected:
    """A net with its corrections, and the record that belongs to it.

    Attributes
    ----------
    net : Net
        Float; its weights are what the integers stand for.
    record : Record
    layers : mapping of layer name to LayerCorrection
    """

    net: Net
    record: Record
    layers: Mapping[str, LayerCorrection] = field(default_factory=dict)

    def only(self, net: Net, record: Record, steps: Steps) -> Corrected:
        """Return the corrections of some steps alone.

        Parameters
        ----------
        net, record
            As they were given to `correct`.
        steps : Steps
        """
        layers = {}
        for name, c in self.layers.items():
            gain = c.gain if steps.gain else np.ones_like(c.gain)
            shift = c.shift if steps.gain else c.plain_shift
            layers[name] = LayerCorrection(
                c.weights if steps.rounding else c.few,
                gain,
                shift if steps.bias else np.zeros_like(shift),
                c.plain_shift,
                c.data if steps.search else None,
                c.few,
                c.before,
                c.after,
            )
        return applied(net, record, layers)


def applied(net: Net, record: Record, corrections: Mapping[str, LayerCorrection]) -> Corrected:
    """Return net and record with corrections; a layer whose bias leaves int32 goes without."""
    layers, records, kept = [], dict(record.layers), {}
    for layer in net.layers:
        layers.append(layer)
        if layer.name not in corrections:
            continue
        correction = corrections[layer.name]
        changed, changed_record = _corrected(layer, record.layers[layer.name], correction)
        try:
            quantize_layer(changed, changed_record)
        except PipelineError:
            continue
        layers[-1], records[layer.name] = changed, changed_record
        kept[layer.name] = correction
    return Corrected(net.with_layers(tuple(layers)), Record(records), kept)


def _corrected(
    layer: Layer, record: LayerRecord, correction: LayerCorrection
) -> tuple[Layer, LayerRecord]:
    """Return a layer whose weights and bias are what its corrected integers stand for."""
    if correction.data is not None:
        record = with_data(record, correction.data)
    numbers = quantize_layer(layer, record)
    assert numbers.weights is not None
    scale_w = (np.array(record.scale_w, np.float32) * correction.gain).astype(np.float32)
    integers = numbers.weights if correction.weights is None else correction.weights
    corrected = replace(numbers, weights=integers, scale_w=scale_w)
    blobs = [corrected.fake_weights]
    bias = np.zeros(correction.shift.size)
    if len(layer.blobs) > 1:
        bias = layer.blobs[1].astype(np.float64).reshape(-1)
    if correction.shift.any() or len(layer.blobs) > 1:
        blobs.append((bias + correction.shift).astype(np.float32))
    layer = _with_bias(layer, tuple(blobs))
    return layer, replace(record, scale_w=tuple(float(s) for s in scale_w))


def _with_bias(layer: Layer, blobs: tuple[np.ndarray, ...]) -> Layer:
    if len(blobs) == len(layer.blobs):
        pairs = zip(blobs, layer.blobs, strict=True)
        return replace(layer, blobs=tuple(b.reshape(own.shape) for b, own in pairs))
    param = type(layer.param)()
    param.CopyFrom(layer.param)
    kind = "inner_product_param" if layer.type == "InnerProduct" else "convolution_param"
    getattr(param, kind).bias_term = True
    return replace(layer, param=param, blobs=blobs)

"""What training fake-quantizes in a net, and how: from the settings to a `FakePlan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from caffeio import Layer, Net, Value
from caffeio.errors import NetError
from kernels import QuantParams
from pipeline.config.retrain import RetrainAlgorithm, RetrainConfig, UlqQuantize
from pipeline.errors import ConfigError
from pipeline.layers import Sign, layer_type
from pipeline.layers.int8 import INT8_TYPES
from pipeline.quantize.prepare import Prepared

__all__ = ["DataPlan", "FakePlan", "WeightPlan", "channel_wise", "fake_plan", "not_negative"]


@dataclass(frozen=True)
class DataPlan:
    """How the data that some layers read is fake-quantized.

    Attributes
    ----------
    value : Value
        What they read.
    layers : tuple of str
        Who reads it so.
    fixed_min : bool
        It is never negative: the range begins at 0.
    clips : (float, float) or None
        clip_max and clip_min to begin with; None: IFMR on the first batch.
    """

    value: Value
    layers: tuple[str, ...]
    fixed_min: bool
    clips: tuple[float, float] | None = None


@dataclass(frozen=True)
class WeightPlan:
    """How a layer's weights are fake-quantized.

    Attributes
    ----------
    scale_axis : int or None
        The axis with a scale for each index; None: one scale.
    channel_axis : int
        The axis of the output channels.
    folds : (str, str) or None
        BatchNorm and Scale layers that they will be folded with: what is quantized is the
        folded weight.
    """

    scale_axis: int | None
    channel_axis: int
    folds: tuple[str, str] | None = None


@dataclass(frozen=True)
class FakePlan:
    """All that is fake-quantized in a net.

    Attributes
    ----------
    data : tuple of DataPlan
    weights : dict of layer name to WeightPlan
        Only layers with weights.
    data_bits, weight_bits : int
        2..8.
    """

    data: tuple[DataPlan, ...]
    weights: dict[str, WeightPlan]
    data_bits: int = 8
    weight_bits: int = 8


def fake_plan(
    net: Net, work: Prepared, config: RetrainConfig, starts: Mapping[str, QuantParams]
) -> FakePlan:
    """Return what is fake-quantized in the training net.

    Parameters
    ----------
    net : Net
        The training net.
    work : Prepared
        Of the model to be quantized in the end: its layers to quantize, and what they take in.
    config : RetrainConfig
    starts : mapping of layer name to QuantParams
        The ranges to begin with, as calibrated; layers that are not named begin by the settings.

    Raises
    ------
    caffeio.NetError
        If the training net has not a layer that is to be quantized.
    ConfigError
        If a setting is not allowed for a layer.
    """
    found = {
        layer.name: (layer, link.reads) for layer, link in zip(net.layers, net.links, strict=True)
    }
    groups: dict[tuple[Value, UlqQuantize], list[str]] = {}
    weights: dict[str, WeightPlan] = {}
    for name in work.plans:
        if name not in found:
            raise NetError(
                f"is to be quantized, but the training net '{net.name}' has no such layer; give "
                "both nets the same names, or name it in retrain.skip_layers",
                name,
            )
        layer, reads = found[name]
        groups.setdefault((reads[0], _ulq(layer, config)), []).append(name)
        if INT8_TYPES[layer.type].weighted:
            weights[name] = _weight_plan(layer, net, work, config)
    data = tuple(
        _data_plan(net, value, ulq, tuple(names), starts) for (value, ulq), names in groups.items()
    )
    return FakePlan(data, weights, config.data_bits, config.weight_bits)


def channel_wise(layer: Layer, config: RetrainConfig) -> bool:
    """Whether each output channel has a weight scale of its own: the nearest setting wins.

    Raises
    ------
    ConfigError
        If it is asked for where it is not allowed.
    """
    per_channel = INT8_TYPES[layer.type].per_channel
    chosen = per_channel
    for where, algorithm in _levels(layer, config):
        given = algorithm.retrain_weight_quant_config
        if given is None or given.arq_retrain.channel_wise is None:
            continue
        if given.arq_retrain.channel_wise and not per_channel and where:
            raise ConfigError(
                f"retrain.{where}: channel_wise = true is for Convolution and Deconvolution, "
                f"not for {layer.type} layer '{layer.name}'"
            )
        chosen = given.arq_retrain.channel_wise and per_channel
    return chosen


def _levels(layer: Layer, config: RetrainConfig) -> list[tuple[str, RetrainAlgorithm]]:
    """Return the settings that concern a layer, the nearest last."""
    levels: list[tuple[str, RetrainAlgorithm]] = [("", config)]
    levels += [
        (f"override_layer_types '{o.layer_type}'", o)
        for o in config.override_layer_types
        if o.layer_type == layer.type
    ]
    levels += [
        (f"override_layer_configs '{o.layer_name}'", o)
        for o in config.override_layer_configs
        if o.layer_name == layer.name
    ]
    return levels


def _ulq(layer: Layer, config: RetrainConfig) -> UlqQuantize:
    given = [a.retrain_data_quant_config for _, a in _levels(layer, config)]
    return next((g.ulq_quantize for g in reversed(given) if g is not None), UlqQuantize())


def _data_plan(
    net: Net,
    value: Value,
    ulq: UlqQuantize,
    names: tuple[str, ...],
    starts: Mapping[str, QuantParams],
) -> DataPlan:
    fixed = ulq.fixed_min if ulq.fixed_min is not None else not_negative(net, value)
    clips = None
    if ulq.clip_max_min is not None:
        clips = (ulq.clip_max_min.clip_max, ulq.clip_max_min.clip_min)
    elif names[0] in starts:
        p = starts[names[0]]
        clips = (p.scale * (p.high - p.offset), min(p.scale * (p.low - p.offset), 0.0))
    if clips is not None and not clips[0] > 0:
        clips = None  # data without positive values: the guards would lose such a range
    return DataPlan(value, names, fixed, clips)


def not_negative(net: Net, value: Value) -> bool:
    """Whether a value comes from ReLU or its like, so that it cannot be negative."""
    for layer, link in zip(net.layers, net.links, strict=True):
        if value in link.writes:
            sign = layer_type(layer).sign(layer)
            kept = sign is Sign.KEPT and bool(link.reads)
            return sign is Sign.NOT_NEGATIVE or (
                kept and all(not_negative(net, v) for v in link.reads)
            )
    return False


def _weight_plan(layer: Layer, net: Net, work: Prepared, config: RetrainConfig) -> WeightPlan:
    axis = INT8_TYPES[layer.type].channel_axis if channel_wise(layer, config) else None
    absorbed = work.fused.origin(layer.name)[1:]
    for name in absorbed:
        net.layer(name)  # raises where the training net has it not
    folds = (absorbed[0], absorbed[1]) if absorbed else None
    return WeightPlan(axis, INT8_TYPES[layer.type].channel_axis, folds)

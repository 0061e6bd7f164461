"""What training fake-quantizes in a net, and how: from the settings to a `FakePlan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from caffeio import Layer, Net, Value
from caffeio.errors import NetError
from kernels import QuantParams
from pipeline.config.retrain import RetrainConfig, UlqQuantize
from pipeline.layers import Sign, layer_type
from pipeline.layers.int8 import INT8_TYPES
from pipeline.quantize.assign import channel_wise, levels
from pipeline.quantize.prepare import Prepared

__all__ = [
    "DataPlan",
    "FakePlan",
    "WeightPlan",
    "fake_plan",
    "not_negative",
    "trained_channel_wise",
]


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
    by_name = {
        layer.name: (layer, link.reads) for layer, link in zip(net.layers, net.links, strict=True)
    }
    groups: dict[tuple[Value, UlqQuantize], list[str]] = {}
    weights: dict[str, WeightPlan] = {}
    for name in work.plans:
        if name not in by_name:
            raise NetError(
                f"is to be quantized, but the training net '{net.name}' has no such layer; give "
                "both nets the same names, or name it in retrain.skip_layers",
                name,
            )
        layer, reads = by_name[name]
        groups.setdefault((reads[0], _ulq(layer, config)), []).append(name)
        if INT8_TYPES[layer.type].weighted:
            weights[name] = _weight_plan(layer, net, work, config)
    data = tuple(
        _data_plan(net, value, ulq, tuple(names), starts) for (value, ulq), names in groups.items()
    )
    return FakePlan(data, weights, config.data_bits, config.weight_bits)


def trained_channel_wise(layer: Layer, config: RetrainConfig) -> bool:
    """As `pipeline.quantize.assign.channel_wise`, by the settings of ``[retrain]``."""
    configs = [(where, a.retrain_weight_quant_config) for where, a in levels(layer, config)]
    settings = [(where, None if g is None else g.arq_retrain.channel_wise) for where, g in configs]
    return channel_wise(layer, "retrain", settings)


def _ulq(layer: Layer, config: RetrainConfig) -> UlqQuantize:
    configs = [a.retrain_data_quant_config for _, a in levels(layer, config)]
    return next((g.ulq_quantize for g in reversed(configs) if g is not None), UlqQuantize())


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
            keeps_sign = sign is Sign.KEPT and bool(link.reads)
            return sign is Sign.NOT_NEGATIVE or (
                keeps_sign and all(not_negative(net, v) for v in link.reads)
            )
    return False


def _weight_plan(layer: Layer, net: Net, work: Prepared, config: RetrainConfig) -> WeightPlan:
    axis = INT8_TYPES[layer.type].channel_axis if trained_channel_wise(layer, config) else None
    absorbed = work.fused.origin(layer.name)[1:]
    for name in absorbed:
        net.layer(name)  # raises where the training net has it not
    folds = (absorbed[0], absorbed[1]) if absorbed else None
    return WeightPlan(axis, INT8_TYPES[layer.type].channel_axis, folds)

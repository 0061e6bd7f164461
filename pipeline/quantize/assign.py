"""Which algorithm applies to which layer: the nearest setting wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import kernels
from caffeio import Layer, Net
from kernels import Ifmr, Method, Mse
from pipeline.config.calibrate import Algorithm, CalibrateConfig
from pipeline.config.improve import Effort
from pipeline.config.names import is_named, is_pattern, missing_hint, named_layers
from pipeline.config.retrain import RetrainAlgorithm, RetrainConfig
from pipeline.errors import ConfigError
from pipeline.layers.int8 import INT8_TYPES

__all__ = ["LayerPlan", "channel_wise", "check_names", "layer_plan", "levels", "met_names"]


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is quantized.

    Attributes
    ----------
    method : Method
        How the scale of its data is searched.
    channel_wise : bool
        One weight scale for each output channel.
    """

    method: Method
    channel_wise: bool

    @property
    def summary(self) -> str:
        """How it is quantized, in one line."""
        return (
            f"{self.method!r}, {'a weight scale a channel' if self.channel_wise else 'one scale'}"
        )


def check_names(table: str, config: CalibrateConfig | RetrainConfig, net: Net) -> tuple[str, ...]:
    """Return how many layers each pattern meets.

    Raises
    ------
    ConfigError
        If a setting of a table names, or a pattern meets, what the net does not have.
    """
    named = {
        "skip_layers": config.skip_layers,
        "only_layers": config.only_layers,
        "skip_fusion_layers": config.skip_fusion_layers,
        "override_layer_configs": tuple(o.layer_name for o in config.override_layer_configs),
    }
    notes = [
        note for key, given in named.items() for note in met_names(f"{table}.{key}", given, net)
    ]
    types = {layer.type for layer in net.layers}
    for name in config.skip_layer_types:
        if name not in types:
            raise ConfigError(
                f"{table}.skip_layer_types: net '{net.name}' has no layer of type '{name}'"
                f"{missing_hint(name, types)}"
            )
    return tuple(notes)


def met_names(key: str, given: Sequence[str], net: Net) -> list[str]:
    """Return how many layers each pattern meets; raise `ConfigError` for one that meets none."""
    notes, names = [], [layer.name for layer in net.layers]
    for name in given:
        met = named_layers(name, names)
        if not met:
            what = "that '{}' meets" if is_pattern(name) else "'{}'"
            hint = missing_hint(name, names)
            raise ConfigError(f"{key}: net '{net.name}' has no layer {what.format(name)}{hint}")
        if met != (name,):
            notes.append(f"{key}: '{name}' meets {len(met)} layer{'s' * (len(met) != 1)}")
    return notes


@overload
def levels(layer: Layer, config: CalibrateConfig) -> list[tuple[str, Algorithm]]: ...
@overload
def levels(layer: Layer, config: RetrainConfig) -> list[tuple[str, RetrainAlgorithm]]: ...
def levels(layer: Layer, config: CalibrateConfig | RetrainConfig) -> list[tuple[str, Any]]:
    """Return the settings that concern a layer and the keys they stand under, the nearest last."""
    common = (
        ("common_config", config.common_config) if isinstance(config, CalibrateConfig) else None
    )
    return [
        common or ("", config),
        *(
            (f"override_layer_types '{o.layer_type}'", o)
            for o in config.override_layer_types
            if o.layer_type == layer.type
        ),
        *(
            (f"override_layer_configs '{o.layer_name}'", o)
            for o in _by_pattern_first(layer, config)
        ),
    ]


def _by_pattern_first(layer: Layer, config: CalibrateConfig | RetrainConfig) -> list[Any]:
    """Return the overrides that name a layer: one of its own name is nearer than a pattern."""
    named = [o for o in config.override_layer_configs if is_named(layer.name, (o.layer_name,))]
    return sorted(named, key=lambda o: o.layer_name == layer.name)


def channel_wise(layer: Layer, table: str, asked: Sequence[tuple[str, bool | None]]) -> bool:
    """Whether each output channel has a weight scale of its own: the nearest setting wins.

    Parameters
    ----------
    layer : Layer
    table : str
        Of the config, for errors.
    asked : sequence of (str, bool or None)
        From `levels`. The first, for all layers, is ignored where a layer type does not allow it.

    Raises
    ------
    ConfigError
        If it is asked for where it is not allowed.
    """
    able = chosen = INT8_TYPES[layer.type].per_channel
    for i, (where, setting) in enumerate(asked):
        if setting and not able and i:
            raise ConfigError(
                f"{table}.{where}: channel_wise = true is for Convolution and Deconvolution, "
                f"not for {layer.type} layer '{layer.name}'"
            )
        chosen = chosen if setting is None else setting and able
    return chosen


def layer_plan(layer: Layer, config: CalibrateConfig, effort: Effort = "original") -> LayerPlan:
    """Return how a layer is quantized: its own override, its type's, or the common settings.

    Where none of them names a search it is IFMR with the original effort or ``exact``, and else
    the least squared error, on which corrections can build: what a range cuts off, none brings
    back.

    Raises
    ------
    ConfigError
        If channel_wise is asked for where it is not allowed.
    """
    search_class = Ifmr if effort == "original" or config.exact else Mse
    method: Method = search_class(asymmetric=config.activation_offset)
    settings: list[tuple[str, bool | None]] = []
    for where, algorithm in levels(layer, config):
        arq = algorithm.arq_quantize
        settings.append((where, None if arq is None else arq.channel_wise))
        for name, search in algorithm.data_searches.items():
            method = _method(name, search.model_dump(), config.activation_offset)
    return LayerPlan(method, channel_wise(layer, "calibrate", settings))


def _method(name: str, settings: dict[str, object], activation_offset: bool) -> Method:
    if settings.get("asymmetric") is None:
        settings["asymmetric"] = activation_offset
    if name == "ifmr":
        ends = settings.pop("search_range_start"), settings.pop("search_range_end")
        settings["search_range"] = ends
    return kernels.METHODS[name](**settings)  # type: ignore[arg-type]

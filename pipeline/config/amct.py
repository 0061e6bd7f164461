"""Configs of the Ascend tool in the place of ``[calibrate]``'s and ``[retrain]``'s settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from caffeio.calibration_config import HfmgSettings, IfmrSettings, LayerSettings, QuantConfig
from caffeio.quant_configs import read_quant_cfg, read_retrain_cfg
from caffeio.retrain_config import RetrainLayerSettings, RetrainQuantConfig
from pipeline.config.base import no_effect
from pipeline.config.calibrate import (
    Algorithm,
    ArqQuantize,
    CalibrateConfig,
    HfmgQuantize,
    IfmrQuantize,
    LayerOverride,
    TypeOverride,
)
from pipeline.config.retrain import (
    ArqRetrain,
    ClipMaxMin,
    RetrainAlgorithm,
    RetrainConfig,
    RetrainDataQuantConfig,
    RetrainLayerOverride,
    RetrainTypeOverride,
    RetrainWeightQuantConfig,
    UlqQuantize,
)
from pipeline.errors import ConfigError

__all__ = ["quant_cfg_of", "retrain_cfg_of", "with_quant_cfg", "with_retrain_cfg"]


def with_quant_cfg(config: CalibrateConfig) -> tuple[CalibrateConfig, tuple[str, ...]]:
    """Return the config with the settings of the file that `quant_cfg` names, and its notes.

    Raises
    ------
    ConfigError
        If the file asks for what is not supported.
    """
    if config.quant_cfg is None:
        return config, ()
    settings = read_quant_cfg(config.quant_cfg)
    changes = {
        "batch_num": settings.batch_num,
        "activation_offset": settings.activation_offset,
        "joint_quant": settings.joint_quant,
        "skip_layers": settings.skip_layers,
        "skip_layer_types": settings.skip_layer_types,
        "only_layers": settings.only_layers,
        "do_fusion": settings.do_fusion,
        "skip_fusion_layers": settings.skip_fusion_layers,
        "common_config": Algorithm(**_algorithm(settings.common)),
        "override_layer_types": _by_type(settings.layer_types, config.quant_cfg),
        "override_layer_configs": tuple(
            LayerOverride(layer_name=name, **_algorithm(s)) for name, s in settings.layers.items()
        ),
    }
    given = config.model_fields_set & changes.keys()
    unused = no_effect("calibrate", given, f"{config.quant_cfg.name} takes its place")
    return config.model_copy(update=changes), (*settings.notes, *unused)


def _by_type(settings: Mapping[str, LayerSettings], path: Path) -> tuple[TypeOverride, ...]:
    try:
        return tuple(TypeOverride(layer_type=name, **_algorithm(s)) for name, s in settings.items())
    except ValidationError as error:
        raise _wrong_type(path, error) from None


def _wrong_type(path: Path, error: ValidationError) -> ConfigError:
    what = error.errors()[0]["msg"].removeprefix("Value error, ")
    return ConfigError(f"{path}: override_layer_types: {what}")


def _algorithm(settings: LayerSettings) -> dict[str, Any]:
    """Return the keywords of an `Algorithm` that says the same."""
    out: dict[str, Any] = {}
    if settings.channel_wise is not None:
        out["arq_quantize"] = ArqQuantize(channel_wise=settings.channel_wise)
    if isinstance(settings.activation, IfmrSettings):
        out["ifmr_quantize"] = IfmrQuantize(**vars(settings.activation))
    if isinstance(settings.activation, HfmgSettings):
        out["hfmg_quantize"] = HfmgQuantize(**vars(settings.activation))
    return out


def with_retrain_cfg(config: RetrainConfig) -> RetrainConfig:
    """Return the config with the settings and the notes of the file that `quant_cfg` names.

    Raises
    ------
    ConfigError
        If the file names a layer type that cannot be quantized.
    caffeio.CaffeFileError
        If it cannot be read.
    """
    if config.quant_cfg is None:
        return config
    settings = read_retrain_cfg(config.quant_cfg)
    try:
        types = tuple(
            RetrainTypeOverride(layer_type=name, **_retrained(s))
            for name, s in settings.layer_types.items()
        )
    except ValidationError as error:
        raise _wrong_type(config.quant_cfg, error) from None
    layers = tuple(
        RetrainLayerOverride(layer_name=name, **_retrained(s))
        for name, s in settings.layers.items()
    )
    changes = {
        "skip_layers": settings.skip_layers,
        "skip_layer_types": settings.skip_layer_types,
        "only_layers": settings.only_layers,
        "override_layer_types": types,
        "override_layer_configs": layers,
        "retrain_data_quant_config": None,
        "retrain_weight_quant_config": None,
        **_retrained(settings.common),
    }
    name = config.quant_cfg.name
    given = config.model_fields_set & changes.keys()
    unused = [*no_effect("retrain", given, f"{name} takes its place")]
    if settings.batch_num is not None:
        unused.append(
            f"{name}: batch_num has no effect: ranges begin by [calibrate], or on the first "
            "batch of the training"
        )
    changed = config.model_copy(update=changes)
    changed._notes = (*settings.notes, *unused)
    return changed


def _retrained(settings: RetrainLayerSettings) -> dict[str, Any]:
    """Return the keywords of a `RetrainAlgorithm` that says the same."""
    clip = None
    if settings.clip is not None:
        clip = ClipMaxMin(clip_min=settings.clip[0], clip_max=settings.clip[1])
    data = UlqQuantize(clip_max_min=clip, fixed_min=settings.fixed_min)
    weights = ArqRetrain(channel_wise=settings.channel_wise)
    out: dict[str, Any] = {}
    if data != UlqQuantize():
        out["retrain_data_quant_config"] = RetrainDataQuantConfig(ulq_quantize=data)
    if weights != ArqRetrain():
        out["retrain_weight_quant_config"] = RetrainWeightQuantConfig(arq_retrain=weights)
    return out


def quant_cfg_of(config: CalibrateConfig) -> QuantConfig:
    """Return the original tool's config that says the same.

    Raises
    ------
    ConfigError
        If a search is set that the original tool has not.
    """
    return QuantConfig(
        config.batch_num,
        config.activation_offset,
        config.joint_quant,
        config.skip_layers,
        config.skip_layer_types,
        config.do_fusion,
        config.skip_fusion_layers,
        config.only_layers,
        layer_settings("common_config", config.common_config),
        {o.layer_type: layer_settings(o.layer_type, o) for o in config.override_layer_types},
        {o.layer_name: layer_settings(o.layer_name, o) for o in config.override_layer_configs},
    )


def layer_settings(where: str, algorithm: Algorithm) -> LayerSettings:
    """Return what an `Algorithm` says in the original tool's terms; errors as `quant_cfg_of`."""
    activation: IfmrSettings | HfmgSettings | None = None
    for name, search in algorithm.data_searches.items():
        if name == "ifmr":
            activation = IfmrSettings(**search.model_dump())
        elif name == "hfmg":
            activation = HfmgSettings(**search.model_dump())
        else:
            raise ConfigError(
                f"{where}: the original tool has no {name}_quantize; choose ifmr_quantize"
            )
    arq = algorithm.arq_quantize
    return LayerSettings(None if arq is None else arq.channel_wise, activation)


def retrain_cfg_of(config: RetrainConfig) -> RetrainQuantConfig:
    """Return the original tool's retrain config that says the same."""
    return RetrainQuantConfig(
        None,
        config.skip_layers,
        config.skip_layer_types,
        config.only_layers,
        _trained_settings(config),
        {o.layer_type: _trained_settings(o) for o in config.override_layer_types},
        {o.layer_name: _trained_settings(o) for o in config.override_layer_configs},
    )


def _trained_settings(algorithm: RetrainAlgorithm) -> RetrainLayerSettings:
    data, weights = algorithm.retrain_data_quant_config, algorithm.retrain_weight_quant_config
    ulq = UlqQuantize() if data is None else data.ulq_quantize
    clip = ulq.clip_max_min
    return RetrainLayerSettings(
        None if clip is None else (clip.clip_min, clip.clip_max),
        ulq.fixed_min,
        None if weights is None else weights.arq_retrain.channel_wise,
    )

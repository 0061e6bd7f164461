"""Configs of the Ascend tool in the place of ``[calibrate]``'s and ``[retrain]``'s settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from caffeio.calibration_config import HfmgSettings, IfmrSettings, LayerSettings, read_quant_cfg
from caffeio.retrain_config import RetrainLayerSettings, read_retrain_cfg
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
    RetrainConfig,
    RetrainDataQuantConfig,
    RetrainLayerOverride,
    RetrainTypeOverride,
    RetrainWeightQuantConfig,
    UlqQuantize,
)
from pipeline.errors import ConfigError

__all__ = ["with_quant_cfg", "with_retrain_cfg"]


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
    if settings.joint_quant:
        raise ConfigError(f"{config.quant_cfg}: joint_quant = true is not supported")
    changed = config.model_copy(
        update={
            "batch_num": settings.batch_num,
            "activation_offset": settings.activation_offset,
            "skip_layers": settings.skip_layers,
            "skip_layer_types": settings.skip_layer_types,
            "do_fusion": settings.do_fusion,
            "skip_fusion_layers": settings.skip_fusion_layers,
            "common_config": Algorithm(**_algorithm(settings.common)),
            "override_layer_types": _overrides(settings.layer_types, TypeOverride, "layer_type"),
            "override_layer_configs": _overrides(settings.layers, LayerOverride, "layer_name"),
        }
    )
    return changed, settings.notes


def _overrides(settings: Mapping[str, LayerSettings], table: type, key: str) -> tuple:
    return tuple(table(**{key: name}, **_algorithm(s)) for name, s in settings.items())


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
        what = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{config.quant_cfg}: override_layer_types: {what}") from None
    layers = tuple(
        RetrainLayerOverride(layer_name=name, **_retrained(s))
        for name, s in settings.layers.items()
    )
    changed = config.model_copy(
        update={
            "skip_layers": settings.skip_layers,
            "skip_layer_types": settings.skip_layer_types,
            "override_layer_types": types,
            "override_layer_configs": layers,
            **_retrained(settings.common),
        }
    )
    unused = ""
    if settings.batch_num is not None:
        unused = (
            f"{config.quant_cfg}: batch_num is not used: ranges begin by [calibrate], or on the "
            "first batch of the training"
        )
    changed._notes = (*settings.notes, *filter(None, (unused,)))
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

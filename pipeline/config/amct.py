"""A config of the Ascend tool in the place of ``[calibrate]``'s settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caffeio.calibration_config import HfmgSettings, IfmrSettings, LayerSettings, read_quant_cfg
from pipeline.config.calibrate import (
    Algorithm,
    ArqQuantize,
    CalibrateConfig,
    HfmgQuantize,
    IfmrQuantize,
    LayerOverride,
    TypeOverride,
)
from pipeline.errors import ConfigError

__all__ = ["with_quant_cfg"]


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

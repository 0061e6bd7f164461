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
    given = read_quant_cfg(config.quant_cfg)
    if given.joint_quant:
        raise ConfigError(f"{config.quant_cfg}: joint_quant = true is not supported")
    changed = config.model_copy(
        update={
            "batch_num": given.batch_num,
            "activation_offset": given.activation_offset,
            "skip_layers": given.skip_layers,
            "skip_layer_types": given.skip_layer_types,
            "do_fusion": given.do_fusion,
            "skip_fusion_layers": given.skip_fusion_layers,
            "common_config": Algorithm(**_algorithm(given.common)),
            "override_layer_types": _overrides(given.layer_types, TypeOverride, "layer_type"),
            "override_layer_configs": _overrides(given.layers, LayerOverride, "layer_name"),
        }
    )
    return changed, given.notes


def _overrides(found: Mapping[str, LayerSettings], table: type, key: str) -> tuple:
    return tuple(table(**{key: name}, **_algorithm(s)) for name, s in found.items())


def _algorithm(given: LayerSettings) -> dict[str, Any]:
    """Return the keywords of an `Algorithm` that says the same."""
    out: dict[str, Any] = {}
    if given.channel_wise is not None:
        out["arq_quantize"] = ArqQuantize(channel_wise=given.channel_wise)
    if isinstance(given.activation, IfmrSettings):
        out["ifmr_quantize"] = IfmrQuantize(**vars(given.activation))
    if isinstance(given.activation, HfmgSettings):
        out["hfmg_quantize"] = HfmgQuantize(**vars(given.activation))
    return out

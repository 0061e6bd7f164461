"""Configs of the original tool turned into this one's, and the other way round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from caffeio.calibration_config import (
    HfmgSettings,
    IfmrSettings,
    LayerSettings,
    QuantConfig,
    quant_cfg_to_text,
)
from caffeio.config_json import config_to_json, retrain_config_to_json
from caffeio.quant_configs import read_any_cfg
from caffeio.retrain_config import RetrainLayerSettings, RetrainQuantConfig, retrain_cfg_to_text
from kernels import Hfmg, Ifmr, Method
from pipeline.config.amct import quant_cfg_of, retrain_cfg_of, with_quant_cfg, with_retrain_cfg
from pipeline.config.calibrate import CalibrateConfig
from pipeline.config.load import Config
from pipeline.config.retrain import RetrainConfig
from pipeline.config.write import table_lines
from pipeline.errors import ConfigError
from pipeline.qat.plan import trained_channel_wise
from pipeline.quantize.prepare import Prepared

__all__ = ["converted_config", "original_config"]


def converted_config(path: str | Path) -> str:
    """Return a config of the original tool as a config of this one, TOML.

    Parameters
    ----------
    path : path-like
        A simplified config (.cfg) or a config.json, for calibration or retraining.

    Raises
    ------
    ConfigError
        If it asks for what is not supported.
    caffeio.CaffeFileError
        If it cannot be read.
    """
    path = Path(path)
    found = read_any_cfg(path)
    lines = [
        f"# {path.name} of the Ascend tool, as a config of caffe-quant.",
        "# It names neither model nor data: put yours in.",
        *(f"# {note}" for note in found.notes),
        "[model]",
        'prototxt = "deploy.prototxt"',
        'caffemodel = "net.caffemodel"',
        "",
        "[transform]",
        "",
    ]
    if isinstance(found, QuantConfig):
        settings, _ = with_quant_cfg(CalibrateConfig(quant_cfg=path))
        plain = settings.model_copy(update={"quant_cfg": None, "effort": "original"})
        head, *rest = table_lines("calibrate", plain)
        return "\n".join([*lines, head, 'data.source = "calibration"', *rest]) + "\n"
    retrain = with_retrain_cfg(RetrainConfig(solver=Path("solver.prototxt"), quant_cfg=path))
    plain_retrain = retrain.model_copy(update={"quant_cfg": None})
    return "\n".join([*lines, *table_lines("retrain", plain_retrain)]) + "\n"


def original_config(config: Config, work: Prepared) -> str | None:
    """Return the original tool's config for what a run does; None if it is not asked for.

    Parameters
    ----------
    config : Config
        Its ``output.write_config`` is "json", every layer with its settings, or "cfg", the
        simplified config.
    work : Prepared

    Raises
    ------
    ConfigError
        If a layer's range is searched as the original tool cannot.
    """
    kind = config.output.write_config
    if kind is None:
        return None
    if config.retrain is not None:
        retrain = _by_name(retrain_cfg_of(config.retrain), work)
        if kind == "cfg":
            return retrain_cfg_to_text(retrain)
        return retrain_config_to_json(_each_retrained(retrain, config.retrain, work))
    settings = {
        layer.name: LayerSettings(
            work.plans[layer.name].channel_wise,
            _activation(layer.name, work.plans[layer.name].method),
        )
        for layer in work.fused.net.layers
        if layer.name in work.plans
    }
    if kind == "cfg":
        return quant_cfg_to_text(replace(_by_name_quant(work), layers=settings))
    skipped = {name: LayerSettings(False, IfmrSettings()) for name in _left_out(work)}
    ordered = {**settings, **skipped}
    names = [v.layer for v in work.verdicts if v.layer in ordered]
    whole = replace(
        quant_cfg_of(work.calibrate.model_copy(update=_NO_ALGORITHMS)),
        only_layers=tuple(settings),
        layers={name: ordered[name] for name in names},
    )
    return config_to_json(whole)


#: The settings that are written layer by layer instead.
_NO_ALGORITHMS = {
    "common_config": CalibrateConfig().common_config,
    "override_layer_types": (),
    "override_layer_configs": (),
}


def _by_name_quant(work: Prepared) -> QuantConfig:
    """Return the settings but those of layers, with every layer in float that could be quantized.

    The simplified config has no `only_layers`, and names of layers serve for types as well.
    """
    plain = quant_cfg_of(work.calibrate.model_copy(update=_NO_ALGORITHMS))
    return replace(plain, only_layers=(), skip_layers=_left_out(work), skip_layer_types=())


def _by_name(config: RetrainQuantConfig, work: Prepared) -> RetrainQuantConfig:
    return replace(config, only_layers=(), skip_layers=_left_out(work), skip_layer_types=())


def _left_out(work: Prepared) -> tuple[str, ...]:
    """Return the layers that could be quantized, but that the settings leave in float."""
    return tuple(v.layer for v in work.verdicts if v.by_setting)


def _activation(layer: str, method: Method) -> IfmrSettings | HfmgSettings:
    if isinstance(method, Ifmr):
        return IfmrSettings(
            *method.search_range, method.search_step, method.max_percentile,
            method.min_percentile, method.asymmetric,
        )  # fmt: skip
    if isinstance(method, Hfmg):
        return HfmgSettings(method.num_of_bins, method.asymmetric)
    name = type(method).__name__.lower()
    raise ConfigError(
        f"--write-config: layer '{layer}' is searched by {name}, which the original tool has not; "
        "effort = 'original', or ifmr_quantize in common_config, is what it can do"
    )


def _each_retrained(
    config: RetrainQuantConfig, settings: RetrainConfig, work: Prepared
) -> RetrainQuantConfig:
    """Return the config with the settings of each layer, the nearest of all that concern it."""
    layers = {layer.name: layer for layer in work.fused.net.layers}
    names = [v.layer for v in work.verdicts if v.layer in work.plans or v.layer in _left_out(work)]
    chosen = {}
    for name in names:
        levels = (
            config.common,
            config.layer_types.get(layers[name].type, RetrainLayerSettings()),
            config.layers.get(name, RetrainLayerSettings()),
        )
        data = [s for s in levels if s.clip is not None or s.fixed_min is not None]
        nearest = data[-1] if data else RetrainLayerSettings()
        per_channel = trained_channel_wise(layers[name], settings)
        chosen[name] = RetrainLayerSettings(nearest.clip, nearest.fixed_min, per_channel)
    return replace(config, only_layers=tuple(work.plans), layers=chosen)

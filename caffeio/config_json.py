"""The Ascend tool's config.json: every layer with its settings, for calibration or retraining."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from caffeio.calibration_config import HfmgSettings, IfmrSettings, LayerSettings, QuantConfig
from caffeio.errors import CaffeFileError
from caffeio.files import parse_json
from caffeio.retrain_config import RetrainLayerSettings, RetrainQuantConfig

__all__ = ["config_to_json", "is_json", "parse_config_json", "parse_retrain_json",
           "retrain_config_to_json"]  # fmt: skip

_TOP = ("version", "batch_num", "activation_offset", "joint_quant", "do_fusion",
        "skip_fusion_layers")  # fmt: skip
_CALIBRATION = ("calibration", "calibrate")
_NUMBER = (int, float)
T = TypeVar("T")


def is_json(text: str) -> bool:
    """Whether a config's text is JSON: protobuf's text format never begins with a brace."""
    return text.lstrip("\ufeff \t\r\n").startswith("{")


def parse_config_json(text: str, path: str | Path = "<text>") -> QuantConfig:
    """Make a config of a config.json's text.

    Only the layers that it enables are quantized: those that it does not name stay in float.

    Raises
    ------
    CaffeFileError
        If it is no JSON, enables no layer, or a value is of the wrong type, out of range, or not
        supported: it names the layer and the key. Or if it is a config for retraining.
    """
    return _parsed(text, path, _calibration, "quant")


def parse_retrain_json(text: str, path: str | Path = "<text>") -> RetrainQuantConfig:
    """Make a retrain config of a config.json's text; as `parse_config_json`."""
    return _parsed(text, path, _retraining, "retrain")


Layers = dict[str, dict[str, Any]]


def _parsed(
    text: str,
    path: str | Path,
    make: Callable[[dict[str, Any], Layers, tuple[str, ...]], T],
    purpose: str,
) -> T:
    whole = parse_json(text, path)
    if not isinstance(whole, dict):
        raise CaffeFileError(path, "holds no object of settings")
    layers = {name: x for name, x in whole.items() if isinstance(x, dict) and name not in _TOP}
    found = "retrain" if any("retrain_enable" in x for x in layers.values()) else "quant"
    if found != purpose:
        kind, where = ("retraining", "retrain") if found == "retrain" else _CALIBRATION
        raise CaffeFileError(path, f"is a config for {kind}; name it in [{where}] quant_cfg")
    try:
        if (version := _get(whole, "version", int, 1)) != 1:
            raise ValueError(f"version is {version}; only 1 is known")
        enabled = tuple(name for name, x in layers.items() if _flag(name, x, purpose))
        if not enabled:
            raise ValueError("enables no layer: nothing would be quantized")
        return make(whole, layers, enabled)
    except (ValueError, OverflowError) as error:
        raise CaffeFileError(path, str(error)) from None


def _calibration(whole: dict[str, Any], layers: Layers, enabled: tuple[str, ...]) -> QuantConfig:
    notes = [_unused(key, "") for key in whole if key not in layers and key not in _TOP]
    return QuantConfig(
        _get(whole, "batch_num", int, 1),
        _get(whole, "activation_offset", bool, True),
        _get(whole, "joint_quant", bool, False),
        do_fusion=_get(whole, "do_fusion", bool, True),
        skip_fusion_layers=_names(whole, "skip_fusion_layers"),
        only_layers=enabled,
        layers={name: _calibrated(name, x, notes) for name, x in layers.items()},
        notes=tuple(notes),
    )


def _retraining(
    whole: dict[str, Any], layers: Layers, enabled: tuple[str, ...]
) -> RetrainQuantConfig:
    known = ("version", "batch_num")
    notes = [_unused(key, "") for key in whole if key not in layers and key not in known]
    return RetrainQuantConfig(
        _get(whole, "batch_num", int, None),
        only_layers=enabled,
        layers={name: _retrained(name, x, notes) for name, x in layers.items()},
        notes=tuple(notes),
    )


def _flag(name: str, layer: Mapping[str, Any], what: str) -> bool:
    try:
        return bool(_get(layer, f"{what}_enable", bool, True))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"layer '{name}': {error}") from None


def _in_layer(read: Callable[[str, Mapping[str, Any], list[str]], T]) -> Callable[..., T]:
    """Return a function whose errors name the layer."""

    def run(name: str, layer: Mapping[str, Any], notes: list[str]) -> T:
        try:
            return read(name, layer, notes)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"layer '{name}': {error}") from None

    return run


@_in_layer
def _calibrated(name: str, layer: Mapping[str, Any], notes: list[str]) -> LayerSettings:
    data = _table(layer, "activation_quant_params")
    weights = _table(layer, "weight_quant_params")
    algorithm = _get(data, "act_algo", str, "ifmr").removesuffix("_quantize")
    activation: IfmrSettings | HfmgSettings
    asymmetric = _get(data, "asymmetric", bool, None)
    if algorithm == "ifmr":
        used: tuple[str, ...] = ("max_percentile", "min_percentile", "search_range", "search_step")
        start, end = _range(data)
        activation = IfmrSettings(
            start,
            end,
            float(_get(data, "search_step", _NUMBER, 0.01)),
            float(_get(data, "max_percentile", _NUMBER, 0.999999)),
            float(_get(data, "min_percentile", _NUMBER, 0.999999)),
            asymmetric,
        )
    elif algorithm == "hfmg":
        used = ("num_of_bins",)
        activation = HfmgSettings(_get(data, "num_of_bins", int, 4096), asymmetric)
    else:
        raise ValueError(f"act_algo is '{algorithm}'; ifmr and hfmg are supported")
    _eight_bits(data, "activation_quant_params")
    notes += _others(name, data, ("num_bits", "act_algo", "asymmetric", *used))
    notes += _others(name, weights, ("num_bits", "wts_algo", "channel_wise"))
    notes += _others(
        name, layer, ("quant_enable", "activation_quant_params", "weight_quant_params")
    )
    _algorithm(weights, "wts_algo", "arq_quantize")
    _eight_bits(weights, "weight_quant_params")
    return LayerSettings(_get(weights, "channel_wise", bool, None), activation)


@_in_layer
def _retrained(name: str, layer: Mapping[str, Any], notes: list[str]) -> RetrainLayerSettings:
    data, weights = _table(layer, "retrain_data_config"), _table(layer, "retrain_weight_config")
    _algorithm(data, "algo", "ulq_quantize")
    _algorithm(weights, "algo", "arq_retrain")
    ends = [_get(data, key, _NUMBER, None) for key in ("clip_min", "clip_max")]
    if (ends[0] is None) != (ends[1] is None):
        raise ValueError("of clip_min and clip_max one is missing")
    notes += _others(name, data, ("algo", "clip_max", "clip_min", "fixed_min"))
    notes += _others(name, weights, ("algo", "channel_wise"))
    notes += _others(
        name, layer, ("retrain_enable", "retrain_data_config", "retrain_weight_config")
    )
    return RetrainLayerSettings(
        None if ends[0] is None else (float(ends[0]), float(ends[1])),
        _get(data, "fixed_min", bool, None),
        _get(weights, "channel_wise", bool, None),
    )


def _get(table: Mapping[str, Any], key: str, kind: type | tuple[type, ...], default: Any) -> Any:
    """Return a value of its type, or the default where the key is missing."""
    value = table.get(key, default)
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if key in table and not right:
        kinds = {bool: "true or false", int: "a whole number", str: "text"}
        wanted = kinds.get(kind, "a number") if isinstance(kind, type) else "a number"
        raise ValueError(f"{key} is {json.dumps(value)[:40]}; {wanted} is needed")
    return value


def _table(layer: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = layer.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key} is {json.dumps(value)[:40]}; an object is needed")
    return value


def _names(table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise ValueError(f"{key} is {json.dumps(value)[:40]}; a list of names is needed")
    return tuple(value)


def _range(data: Mapping[str, Any]) -> tuple[float, float]:
    value = data.get("search_range", [0.7, 1.3])
    numbers = isinstance(value, list) and all(
        isinstance(x, _NUMBER) and not isinstance(x, bool) for x in value
    )
    if not numbers or len(value) != 2:
        raise ValueError(f"search_range is {json.dumps(value)[:40]}; two numbers are needed")
    return float(value[0]), float(value[1])


def _eight_bits(table: Mapping[str, Any], where: str) -> None:
    if (bits := _get(table, "num_bits", int, 8)) != 8:
        raise ValueError(f"{where}.num_bits is {bits}; only 8 is supported")


def _algorithm(table: Mapping[str, Any], key: str, only: str) -> None:
    if (found := _get(table, key, str, only)) != only:
        raise ValueError(f"{key} is '{found}'; only {only} is supported")


def _others(name: str, table: Mapping[str, Any], known: tuple[str, ...]) -> Iterator[str]:
    return (_unused(key, f"layer '{name}': ") for key in table if key not in known)


def _unused(key: str, where: str) -> str:
    return f"{where}the setting '{key}' is not known here and has no effect"


def config_to_json(config: QuantConfig) -> str:
    """Return a calibration config as a config.json.

    Parameters
    ----------
    config : QuantConfig
        Its `layers` hold the settings of every layer that could be quantized, in the order of the
        file; those that `only_layers` does not name are disabled.
    """
    whole: dict[str, Any] = {
        "version": 1,
        "batch_num": config.batch_num,
        "activation_offset": config.activation_offset,
        "joint_quant": config.joint_quant,
        "do_fusion": config.do_fusion,
        "skip_fusion_layers": list(config.skip_fusion_layers),
    }
    for name, settings in config.layers.items():
        whole[name] = {
            "quant_enable": name in config.only_layers,
            "activation_quant_params": _activation(settings.activation),
            "weight_quant_params": {
                "num_bits": 8,
                "wts_algo": "arq_quantize",
                "channel_wise": bool(settings.channel_wise),
            },
        }
    return json.dumps(whole, indent=4) + "\n"


def _activation(settings: IfmrSettings | HfmgSettings | None) -> dict[str, Any]:
    if isinstance(settings, HfmgSettings):
        out: dict[str, Any] = {
            "num_bits": 8, "act_algo": "hfmg", "num_of_bins": settings.num_of_bins
        }  # fmt: skip
    else:
        s = settings or IfmrSettings()
        out = {
            "num_bits": 8, "act_algo": "ifmr",
            "max_percentile": s.max_percentile, "min_percentile": s.min_percentile,
            "search_range": [s.search_range_start, s.search_range_end],
            "search_step": s.search_step,
        }  # fmt: skip
    if settings is not None and settings.asymmetric is not None:
        out["asymmetric"] = settings.asymmetric
    return out


def retrain_config_to_json(config: RetrainQuantConfig) -> str:
    """Return a retrain config as a config.json; as `config_to_json`."""
    whole: dict[str, Any] = {"version": 1, "batch_num": config.batch_num or 1}
    for name, settings in config.layers.items():
        data: dict[str, Any] = {"algo": "ulq_quantize"}
        if settings.clip is not None:
            data |= {"clip_max": settings.clip[1], "clip_min": settings.clip[0]}
        if settings.fixed_min is not None:
            data["fixed_min"] = settings.fixed_min
        whole[name] = {
            "retrain_enable": name in config.only_layers,
            "retrain_data_config": data,
            "retrain_weight_config": {
                "algo": "arq_retrain",
                "channel_wise": bool(settings.channel_wise),
            },
        }
    return json.dumps(whole, indent=4) + "\n"

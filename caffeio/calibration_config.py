"""The simplified calibration config of the Ascend quantization tool, a text file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from caffeio.errors import CaffeFileError
from caffeio.proto import quant_pb2 as pb
from caffeio.prototxt import as_written, format_text, parse_text

__all__ = ["HfmgSettings", "IfmrSettings", "LayerSettings", "QuantConfig", "parse_quant_cfg",
           "quant_cfg_to_text"]  # fmt: skip

_BINS = (1024, 2048, 4096, 8192)
_PER_CHANNEL = ("Convolution", "Deconvolution")
_NOT_PER_CHANNEL = ("InnerProduct", "Pooling")
#: Fields that only a config for retraining has.
_RETRAIN = ("retrain_data_quant_config", "retrain_weight_quant_config", "quant_skip_layers",
            "quant_skip_types")  # fmt: skip


@dataclass(frozen=True)
class IfmrSettings:
    """How IFMR searches; `asymmetric` None leaves it to activation_offset.

    Raises
    ------
    ValueError
        If a value is out of range; it names the setting.
    """

    search_range_start: float = 0.7
    search_range_end: float = 1.3
    search_step: float = 0.01
    max_percentile: float = 0.999999
    min_percentile: float = 0.999999
    asymmetric: bool | None = None

    def __post_init__(self) -> None:
        for name in ("max_percentile", "min_percentile"):
            if not 0.5 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in (0.5, 1]")
        start, end, step = self.search_range_start, self.search_range_end, self.search_step
        if not 0 < start < end:
            raise ValueError(
                f"search_range_start is {start} and search_range_end {end}; "
                "0 < start < end must hold"
            )
        if not 0 < step <= (end - start) * (1 + 1e-6):  # 1 - 0.9 is a little below 0.1
            raise ValueError(f"search_step is {step}; it must be in (0, end - start]")


@dataclass(frozen=True)
class HfmgSettings:
    """How HFMG searches; `asymmetric` None leaves it to activation_offset.

    Raises
    ------
    ValueError
        If the number of bins is not one of 1024, 2048, 4096 and 8192.
    """

    num_of_bins: int = 4096
    asymmetric: bool | None = None

    def __post_init__(self) -> None:
        if self.num_of_bins not in _BINS:
            raise ValueError(f"num_of_bins is {self.num_of_bins}; it must be one of {_BINS}")


@dataclass(frozen=True)
class LayerSettings:
    """What is set for some layers; None is not set.

    Attributes
    ----------
    channel_wise : bool or None
        One weight scale for each output channel.
    activation : IfmrSettings, HfmgSettings or None
        How data is observed.
    """

    channel_wise: bool | None = None
    activation: IfmrSettings | HfmgSettings | None = None


@dataclass(frozen=True)
class QuantConfig:
    """A calibration config; of common, layer_types and layers the nearest counts.

    Attributes
    ----------
    batch_num : int
    activation_offset, joint_quant, do_fusion : bool
    skip_layers, skip_layer_types, skip_fusion_layers : tuple of str
    only_layers : tuple of str
        The layers that a config.json enables; empty: all that can be quantized.
    common : LayerSettings
    layer_types, layers : mapping of str to LayerSettings
    notes : tuple of str
        What the file holds that has no effect here.

    Raises
    ------
    ValueError
        If batch_num is less than 1.
    """

    batch_num: int = 1
    activation_offset: bool = True
    joint_quant: bool = False
    skip_layers: tuple[str, ...] = ()
    skip_layer_types: tuple[str, ...] = ()
    do_fusion: bool = True
    skip_fusion_layers: tuple[str, ...] = ()
    only_layers: tuple[str, ...] = ()
    common: LayerSettings = LayerSettings()
    layer_types: Mapping[str, LayerSettings] = field(default_factory=dict)
    layers: Mapping[str, LayerSettings] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.batch_num < 1:
            raise ValueError(f"batch_num is {self.batch_num}; it must be 1 or more")
        for name in ("layer_types", "layers"):
            object.__setattr__(self, name, dict(getattr(self, name)))


def parse_quant_cfg(text: str, path: str | Path = "<text>") -> QuantConfig:
    """Make a config of a simplified config's text; errors as for `caffeio.read_quant_cfg`."""
    message, notes = parse_text(text, pb.CalibrationConfig(), path)
    for name in _RETRAIN:
        if any(f"field '{name}' " in note for note in notes):
            raise CaffeFileError(
                path,
                f"is a config for retraining, as it has {name}; name it in [retrain] quant_cfg",
            )
    try:
        return QuantConfig(
            message.batch_num, message.activation_offset, message.joint_quant,
            tuple(message.skip_layers), tuple(message.skip_layer_types), message.do_fusion,
            tuple(message.skip_fusion_layers),
            common=_settings(message.common_config, "common_config"),
            layer_types=_by_type(message), layers=_by_name(message), notes=notes,
        )  # fmt: skip
    except ValueError as error:
        raise CaffeFileError(path, str(error)) from None


def _by_type(message: pb.CalibrationConfig) -> dict[str, LayerSettings]:
    settings: dict[str, LayerSettings] = {}
    for item in message.override_layer_types:
        where = f"override_layer_types '{item.layer_type}'"
        if not item.layer_type or item.layer_type in settings:
            raise ValueError(f"{where}: the layer_type is missing or given twice")
        settings[item.layer_type] = _settings(item.calibration_config, where)
        if settings[item.layer_type].channel_wise and item.layer_type not in _PER_CHANNEL:
            raise ValueError(
                f"{where}: channel_wise is true, but only {' and '.join(_PER_CHANNEL)}"
                " have a scale for each channel"
            )
    for field_name, types in (
        ("conv_calibration_config", _PER_CHANNEL),
        ("fc_calibration_config", _NOT_PER_CHANNEL),
    ):
        if not message.HasField(field_name):
            continue
        found = _settings(getattr(message, field_name), field_name)
        if found.channel_wise and types == _NOT_PER_CHANNEL:
            raise ValueError(f"{field_name}: channel_wise is true, but {types[0]} has one scale")
        for name in types:
            settings.setdefault(name, found)
    return settings


def _by_name(message: pb.CalibrationConfig) -> dict[str, LayerSettings]:
    settings: dict[str, LayerSettings] = {}
    for item in message.override_layer_configs:
        where = f"override_layer_configs '{item.layer_name}'"
        if not item.layer_name or item.layer_name in settings:
            raise ValueError(f"{where}: the layer_name is missing or given twice")
        settings[item.layer_name] = _settings(item.calibration_config, where)
    return settings


def _settings(message: pb.CalibrationParameter, where: str) -> LayerSettings:
    ifmr, hfmg = message.HasField("ifmr_quantize"), message.HasField("hfmg_quantize")
    if ifmr and hfmg:
        raise ValueError(f"{where}: ifmr_quantize and hfmg_quantize exclude each other")
    activation: IfmrSettings | HfmgSettings | None = None
    try:
        if ifmr:
            i = message.ifmr_quantize
            activation = IfmrSettings(
                as_written(i.search_range_start), as_written(i.search_range_end),
                as_written(i.search_step),
                as_written(i.max_percentile), as_written(i.min_percentile),
                i.asymmetric if i.HasField("asymmetric") else None,
            )  # fmt: skip
        elif hfmg:
            h = message.hfmg_quantize
            activation = HfmgSettings(
                h.num_of_bins, h.asymmetric if h.HasField("asymmetric") else None
            )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    arq = message.arq_quantize
    return LayerSettings(arq.channel_wise if arq.HasField("channel_wise") else None, activation)


def quant_cfg_to_text(config: QuantConfig) -> str:
    """Return a calibration config as a simplified config's text, which has no `only_layers`."""
    message = pb.CalibrationConfig(
        batch_num=config.batch_num,
        activation_offset=config.activation_offset,
        joint_quant=config.joint_quant,
        skip_layers=config.skip_layers,
        skip_layer_types=config.skip_layer_types,
        do_fusion=config.do_fusion,
        skip_fusion_layers=config.skip_fusion_layers,
    )
    if config.common != LayerSettings():
        message.common_config.CopyFrom(_message(config.common))
    for name, settings in config.layer_types.items():
        message.override_layer_types.add(layer_type=name, calibration_config=_message(settings))
    for name, settings in config.layers.items():
        message.override_layer_configs.add(layer_name=name, calibration_config=_message(settings))
    return format_text(message)


def _message(settings: LayerSettings) -> pb.CalibrationParameter:
    message = pb.CalibrationParameter()
    if settings.channel_wise is not None:
        message.arq_quantize.channel_wise = settings.channel_wise
    activation = settings.activation
    if activation is not None:
        name = "ifmr_quantize" if isinstance(activation, IfmrSettings) else "hfmg_quantize"
        for key, value in vars(activation).items():
            if value is not None:
                setattr(getattr(message, name), key, value)
    return message

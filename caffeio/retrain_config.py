"""The simplified retrain config of the Ascend quantization tool, a text file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from caffeio.errors import CaffeFileError
from caffeio.proto import quant_pb2 as pb
from caffeio.prototxt import as_written, format_text, parse_text

__all__ = ["RetrainLayerSettings", "RetrainQuantConfig", "parse_retrain_cfg",
           "retrain_cfg_to_text"]  # fmt: skip


@dataclass(frozen=True)
class RetrainLayerSettings:
    """What is set for some layers; None is not set.

    Attributes
    ----------
    clip : (float, float) or None
        Lowest and highest value that training begins with: below and above 0.
    fixed_min : bool or None
        The range begins at 0.
    channel_wise : bool or None
        One weight scale for each output channel.

    Raises
    ------
    ValueError
        If the clip does not hold 0 within.
    """

    clip: tuple[float, float] | None = None
    fixed_min: bool | None = None
    channel_wise: bool | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip[0] < 0 < self.clip[1]:
            raise ValueError(
                f"clip_min is {self.clip[0]} and clip_max {self.clip[1]}; clip_min < 0 < clip_max "
                "must hold"
            )


@dataclass(frozen=True)
class RetrainQuantConfig:
    """A retrain config; of common, layer_types and layers the nearest counts.

    Attributes
    ----------
    batch_num : int or None
        Test batches that the original tool calibrates on; None: not given.
    skip_layers, skip_layer_types : tuple of str
        With those of quant_skip_layers and quant_skip_types.
    only_layers : tuple of str
        The layers that a config.json enables; empty: all that can be quantized.
    common : RetrainLayerSettings
    layer_types, layers : mapping of str to RetrainLayerSettings
    notes : tuple of str
        What the file holds that the format does not know.
    """

    batch_num: int | None = None
    skip_layers: tuple[str, ...] = ()
    skip_layer_types: tuple[str, ...] = ()
    only_layers: tuple[str, ...] = ()
    common: RetrainLayerSettings = RetrainLayerSettings()
    layer_types: Mapping[str, RetrainLayerSettings] = field(default_factory=dict)
    layers: Mapping[str, RetrainLayerSettings] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=(), compare=False)


def parse_retrain_cfg(text: str, path: str | Path = "<text>") -> RetrainQuantConfig:
    """Make a config of a simplified config's text; errors as for `caffeio.read_retrain_cfg`."""
    message, notes = parse_text(text, pb.RetrainConfig(), path)
    try:
        return RetrainQuantConfig(
            message.batch_num if message.HasField("batch_num") else None,
            tuple(dict.fromkeys([*message.skip_layers, *message.quant_skip_layers])),
            tuple(dict.fromkeys([*message.skip_layer_types, *message.quant_skip_types])),
            common=_settings(message, "the settings for all layers"),
            layer_types=_named(message.override_layer_types, "layer_type"),
            layers=_named(message.override_layer_configs, "layer_name"),
            notes=notes,
        )
    except ValueError as error:
        raise CaffeFileError(path, str(error)) from None


_Message = pb.RetrainConfig | pb.RetrainOverrideLayerType | pb.RetrainOverrideLayer


def _named(
    items: Iterable[pb.RetrainOverrideLayerType | pb.RetrainOverrideLayer], key: str
) -> dict[str, RetrainLayerSettings]:
    settings: dict[str, RetrainLayerSettings] = {}
    for item in items:
        name = getattr(item, key)
        where = f"override_{key.replace('layer_name', 'layer_config')}s '{name}'"
        if not name or name in settings:
            raise ValueError(f"{where}: the {key} is missing or given twice")
        settings[name] = _settings(item, where)
    return settings


def _settings(message: _Message, where: str) -> RetrainLayerSettings:
    ulq = message.retrain_data_quant_config.ulq_quantize
    arq = message.retrain_weight_quant_config.arq_retrain
    clip = None
    if ulq.HasField("clip_max_min"):
        c = ulq.clip_max_min
        clip = (as_written(c.clip_min), as_written(c.clip_max))
    try:
        return RetrainLayerSettings(
            clip,
            ulq.fixed_min if ulq.HasField("fixed_min") else None,
            arq.channel_wise if arq.HasField("channel_wise") else None,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def retrain_cfg_to_text(config: RetrainQuantConfig) -> str:
    """Return a retrain config as a simplified config's text, which has no `only_layers`."""
    message = pb.RetrainConfig(
        batch_num=config.batch_num or 1,
        skip_layers=config.skip_layers,
        skip_layer_types=config.skip_layer_types,
    )
    # both blocks must be there, even empty
    message.retrain_data_quant_config.ulq_quantize.SetInParent()
    message.retrain_weight_quant_config.arq_retrain.SetInParent()
    _fill(message, config.common)
    for name, settings in config.layer_types.items():
        _fill(message.override_layer_types.add(layer_type=name), settings)
    for name, settings in config.layers.items():
        _fill(message.override_layer_configs.add(layer_name=name), settings)
    return format_text(message)


def _fill(message: _Message, settings: RetrainLayerSettings) -> None:
    if settings.clip is not None:
        ends = pb.ClipMaxMin(clip_min=settings.clip[0], clip_max=settings.clip[1])
        message.retrain_data_quant_config.ulq_quantize.clip_max_min.CopyFrom(ends)
    if settings.fixed_min is not None:
        message.retrain_data_quant_config.ulq_quantize.fixed_min = settings.fixed_min
    if settings.channel_wise is not None:
        arq = message.retrain_weight_quant_config.arq_retrain
        arq.channel_wise = settings.channel_wise

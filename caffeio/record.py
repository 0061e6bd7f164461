"""The record of quantization factors, a text file that other Caffe quantization tools share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from google.protobuf.text_encoding import CEscape

from caffeio.atomic import atomic_write
from caffeio.errors import CaffeFileError
from caffeio.files import read_proto_text
from caffeio.proto import quant_pb2 as pb
from caffeio.prototxt import parse_text

__all__ = ["LayerRecord", "Record", "parse_record", "read_record", "record_to_text",
           "write_record"]  # fmt: skip

_MAX_SHIFT = 16


@dataclass(frozen=True)
class LayerRecord:
    """The factors of one layer.

    Attributes
    ----------
    scale_d : float
        Scale of the input data, in (0, inf), a float32.
    offset_d : int
        Offset of the input data, in [-128, 127].
    scale_w : tuple of float
        Weight scales, in (0, inf): one, or one for each output channel; none for a layer without
        weights.
    offset_w : tuple of int
        Weight offsets: 0 each, as many as scales.
    shift_bit : tuple of int
        Shifts N: all 0 or all in 1..16, as many as scales; empty if not searched.
    channels, height, width : int or None
        The size of the input data.
    skip_fusion : bool
        Whether the layer is kept out of fusion.

    Raises
    ------
    ValueError
        If a factor is out of its range; it names the field.
    """

    scale_d: float
    offset_d: int
    scale_w: tuple[float, ...]
    offset_w: tuple[int, ...]
    shift_bit: tuple[int, ...] = ()
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    skip_fusion: bool = False

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):
            scales = tuple(float(np.float32(s)) for s in (self.scale_d, *self.scale_w))
        for name, value in zip(("scale_d", *("scale_w",) * len(self.scale_w)), scales,
                               strict=True):  # fmt: skip
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}; a scale is a positive finite float32")
        object.__setattr__(self, "scale_d", scales[0])
        object.__setattr__(self, "scale_w", scales[1:])
        if not -128 <= self.offset_d <= 127:
            raise ValueError(f"offset_d is {self.offset_d}; it must be in [-128, 127]")
        if any(self.offset_w):
            raise ValueError("offset_w is not 0; weights are quantized symmetrically")
        for name, values in (("offset_w", self.offset_w), ("shift_bit", self.shift_bit)):
            if len(values) != len(self.scale_w) and (values or name == "offset_w"):
                raise ValueError(
                    f"{name} has {len(values)} values, scale_w {len(self.scale_w)}; "
                    "they must be as many"
                )
        if any(self.shift_bit) and not all(1 <= n <= _MAX_SHIFT for n in self.shift_bit):
            raise ValueError(f"shift_bit must be all 0 or all in 1..{_MAX_SHIFT}")


@dataclass(frozen=True)
class Record:
    """The factors of a net.

    Attributes
    ----------
    layers : mapping of str to LayerRecord
        By layer name, in the order of the file.
    notes : tuple of str
        What the file holds that the format does not know.
    """

    layers: Mapping[str, LayerRecord]
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", dict(self.layers))


def read_record(path: str | Path) -> Record:
    """Read a record file.

    Raises
    ------
    CaffeFileError
        If the file cannot be read, has a mistake in its text (with line and column), names a
        layer twice or holds a factor out of range (with layer and field).
    """
    return parse_record(read_proto_text(path), path)


def parse_record(text: str, path: str | Path = "<text>") -> Record:
    """Make a record of a record file's text; errors as for `read_record`."""
    message, notes = parse_text(text, pb.ScaleOffsetRecord(), path, last_wins=True)
    layers: dict[str, LayerRecord] = {}
    for entry in message.record:
        if not entry.HasField("key"):
            raise CaffeFileError(path, "a record has no key; it is the layer's name")
        if entry.key in layers:
            raise CaffeFileError(path, f"layer '{entry.key}' is recorded twice")
        try:
            layers[entry.key] = _layer(entry.value)
        except ValueError as error:
            raise CaffeFileError(path, f"layer '{entry.key}': {error}") from None
    return Record(layers, notes)


def _layer(value: pb.SingleLayerRecord) -> LayerRecord:
    data = _data(value)
    lacking = [name for name in ("scale_d", "offset_d") if not data.HasField(name)]
    if lacking == ["scale_d", "offset_d"] and value.scale_w:
        raise ValueError(
            "only the factors of its weights are there, no scale_d and offset_d: its data has not "
            "been calibrated yet"
        )
    if lacking:
        raise ValueError(f"{lacking[0]} is missing")
    return LayerRecord(
        data.scale_d, data.offset_d, tuple(value.scale_w), tuple(value.offset_w),
        tuple(value.shift_bit),
        data.channels if data.HasField("channels") else None,
        data.height if data.HasField("height") else None,
        data.width if data.HasField("width") else None,
        value.skip_fusion,
    )  # fmt: skip


def _data(value: pb.SingleLayerRecord) -> pb.SingleLayerRecord | pb.RecordD:
    """Return what holds the factors of a layer's data: the second flavour nests them."""
    if not value.record_d:
        return value
    if value.num_bits_w != 8 or value.record_d[0].num_bits_d != 8:
        raise ValueError(
            f"num_bits_w is {value.num_bits_w} and num_bits_d {value.record_d[0].num_bits_d}, as "
            "the flavour of the tool for the SS92x chips can have them; only 8 bits are supported"
        )
    if len(value.record_d) > 1 or value.record_d[0].index:
        raise ValueError(
            "it quantizes several inputs (record_d), as the flavour of the tool for the SS92x "
            "chips can; only layers of one input are quantized here"
        )
    return value.record_d[0]


def _float(value: float) -> str:
    """Return a float32 as protobuf's C++ text printer does: six digits if they do, else nine."""
    short = f"{value:.6g}"
    return short if np.float32(short) == np.float32(value) else f"{value:.9g}"


def record_to_text(record: Record) -> str:
    """Return a record as text, every float32 exactly recoverable."""
    lines = []
    for name, layer in record.layers.items():
        lines += ["record {", f'  key: "{CEscape(name.encode(), False)}"', "  value {"]
        values: list[tuple[str, object]] = [
            ("scale_d", _float(layer.scale_d)), ("offset_d", layer.offset_d),
            *(("scale_w", _float(s)) for s in layer.scale_w),
            *(("offset_w", o) for o in layer.offset_w),
            *(("shift_bit", n) for n in layer.shift_bit),
            ("channels", layer.channels), ("height", layer.height), ("width", layer.width),
            ("skip_fusion", "true" if layer.skip_fusion else None),
        ]  # fmt: skip
        lines += [f"    {field}: {value}" for field, value in values if value is not None]
        lines += ["  }", "}"]
    return "".join(f"{line}\n" for line in lines)


def write_record(record: Record, path: str | Path, overwrite: bool = False) -> None:
    """Write a record file.

    Raises
    ------
    CaffeFileError
        If the file exists and may not be replaced, or cannot be written.
    """
    with atomic_write(path, overwrite) as temporary:
        temporary.write_text(record_to_text(record), encoding="utf-8", newline="\n")

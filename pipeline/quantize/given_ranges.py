"""Ranges that another runtime has found: ncnn's calibration table, TensorRT's calibration cache."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from caffeio import CaffeFileError, Net
from kernels import Histogram, QuantParams, params_from_range
from pipeline.config.names import missing_hint
from pipeline.errors import ConfigError

__all__ = ["GivenRanges", "given_ranges", "layer_ranges", "read_ranges"]

_TENSORRT_HEAD = "TRT-"
_NCNN_WEIGHTS = "_param_0"


@dataclass(frozen=True)
class GivenRanges:
    """The content of such a file.

    Attributes
    ----------
    kind : "ncnn" or "tensorrt"
    largest : dict of str to float
        The magnitude that the runtime's 127 stands for, by layer (ncnn) or by blob (TensorRT).
    """

    kind: str
    largest: dict[str, float]


def read_ranges(path: str | Path) -> GivenRanges:
    """Read a file of ranges; its first line says which of the two it is.

    ncnn: lines ``<layer> <scale>``, the scale 127 / largest; those of weights, which end in
    ``_param_0``, are passed over. TensorRT: a head ``TRT-...``, then ``<blob>: <scale>``, the scale
    largest / 127 as the hexadecimal digits of a float32.

    Raises
    ------
    CaffeFileError
        If it cannot be read, or is neither: with the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not text"
        raise CaffeFileError(path, f"cannot be read: {why}") from None
    tensorrt = bool(lines) and lines[0].startswith(_TENSORRT_HEAD)
    largest: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or (tensorrt and number == 1):
            continue
        name, value = (_tensorrt_line if tensorrt else _ncnn_line)(line)
        if not (name and math.isfinite(value) and value > 0):
            raise CaffeFileError(
                path, f"line {number} is not of ncnn's table or TensorRT's cache: '{line[:60]}'"
            )
        if tensorrt or not name.endswith(_NCNN_WEIGHTS):
            largest[name] = value
    if not largest:
        raise CaffeFileError(path, "holds no scale of data")
    return GivenRanges("tensorrt" if tensorrt else "ncnn", largest)


def _tensorrt_line(line: str) -> tuple[str, float]:
    blob, _, digits = line.rpartition(": ")
    try:
        (scale,) = struct.unpack(">f", bytes.fromhex(digits.strip()))
    except (ValueError, struct.error):
        return "", math.nan
    return blob, 127 * scale


def _ncnn_line(line: str) -> tuple[str, float]:
    name, *numbers = line.split()
    try:
        scales = [float(n) for n in numbers]
    except ValueError:
        return "", math.nan
    if not scales or not all(math.isfinite(s) and s > 0 for s in scales):
        return "", math.nan
    if len(scales) > 1 and not name.endswith(_NCNN_WEIGHTS):
        return "", math.nan
    return name, 127 / scales[0]


def layer_ranges(
    path: str | Path, net: Net, layers: Mapping[str, object]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return the magnitude for each layer that a file has one for, and what there is to say.

    Parameters
    ----------
    path : path-like
    net : Net
        Fused.
    layers : mapping by layer name
        Those to be quantized.

    Raises
    ------
    CaffeFileError
        As `read_ranges`.
    ConfigError
        If it names nothing that is quantized.
    """
    given = read_ranges(path)
    keys = {
        layer.name: layer.name if given.kind == "ncnn" else layer.bottoms[0]
        for layer in net.layers
        if layer.name in layers
    }
    found = {name: given.largest[key] for name, key in keys.items() if key in given.largest}
    what = "layers" if given.kind == "ncnn" else "blobs"
    if not found:
        first = next(iter(given.largest))
        raise ConfigError(
            f"calibrate.ranges_from: {path} names no {what} of net '{net.name}' that are "
            f"quantized, but '{first}'{missing_hint(first, keys.values())}"
        )
    return found, tuple(_notes(given, keys, found, what))


def _notes(
    given: GivenRanges, keys: Mapping[str, str], found: Mapping[str, float], what: str
) -> Iterator[str]:
    yield f"calibrate.ranges_from: ranges of {len(found)} layers are those of the file"
    if searched := [name for name in keys if name not in found]:
        yield f"calibrate.ranges_from: not in the file, searched: {_few(searched)}"
    used = set(keys.values())
    if others := [name for name in given.largest if name not in used]:
        yield f"calibrate.ranges_from: {what} that no quantized layer has: {_few(others)}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def given_ranges(largest: float, seen: Histogram, asymmetric: bool, bits: int = 8) -> QuantParams:
    """Return scale and offset for a magnitude that a symmetric runtime has found.

    Data of both signs gets the runtime's own scale. Data that is nowhere below 0 needs half of
    that where an offset is allowed: its integers then stand for 0 to `largest`.

    Parameters
    ----------
    largest : float
    seen : Histogram
        Of the data.
    asymmetric : bool
        An offset is allowed.
    bits : int
    """
    if asymmetric and seen.low >= 0:
        return params_from_range(0.0, largest, bits=bits)
    return QuantParams(largest / ((1 << (bits - 1)) - 1), 0, bits)

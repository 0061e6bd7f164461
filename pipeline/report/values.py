"""The result of a run as a value, and as ``report.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from caffeio.record import Record
from pipeline.quantize.evaluate import LayerError, ModelScore

__all__ = ["LayerReport", "Report", "to_json"]


@dataclass(frozen=True)
class LayerReport:
    """One layer of the fused net.

    Attributes
    ----------
    layer, type : str
    quantized : bool
    reason : str
        Why it stays in float; empty if quantized.
    absorbed : tuple of str
        BatchNorm and Scale layers folded into it.
    scale_d, offset_d : float, int or None
        Of its input; None in float.
    error : LayerError or None
        None in float, or if nothing was measured.
    """

    layer: str
    type: str
    quantized: bool
    reason: str = ""
    absorbed: tuple[str, ...] = ()
    scale_d: float | None = None
    offset_d: int | None = None
    error: LayerError | None = None


@dataclass(frozen=True)
class Report:
    """What a run found and wrote.

    Attributes
    ----------
    net : str
    record : Record
        Factors of the quantized layers.
    accuracy : tuple of ModelScore
        Float, fakequant and INT8; empty without evaluation data.
    layers : tuple of LayerReport
    files : dict of str to Path
        What was written, by kind.
    samples : int
        Samples that were observed.
    seconds : dict of str to float
        Time of each stage.
    notes : tuple of str
        What the user should know.
    """

    net: str
    record: Record
    accuracy: tuple[ModelScore, ...]
    layers: tuple[LayerReport, ...]
    files: dict[str, Path]
    samples: int
    seconds: dict[str, float]
    notes: tuple[str, ...]


def to_json(report: Report) -> str:
    """Return the report as JSON; numbers that JSON has not (inf, NaN) become null."""
    whole = asdict(report)
    whole["record"] = {name: asdict(layer) for name, layer in report.record.layers.items()}
    whole["files"] = {kind: path.name for kind, path in report.files.items()}
    return json.dumps(_plain(whole), indent=1) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

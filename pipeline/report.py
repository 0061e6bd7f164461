"""The result of a run as a value, as ``report.json``, and as tables in the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from caffeio.record import Record
from pipeline.evaluate import LayerError, ModelScore
from pipeline.plan import NetCost

__all__ = ["LayerReport", "Report", "show_plan", "show_report", "to_json"]


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


def show_report(report: Report, console: Console) -> None:
    """Print the tables: layers first, then the accuracy that they lead to."""
    console.print(_layer_table(report))
    floats = [layer for layer in report.layers if not layer.quantized]
    quantized = len(report.layers) - len(floats)
    console.print(f"{quantized} layers quantized, {len(floats)} in float.", highlight=False)
    if report.accuracy:
        console.print(_accuracy_table(report))
    for note in report.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    folder = next(iter(report.files.values())).parent
    console.print(f"Written to {folder}:", markup=False, highlight=False)
    for path in report.files.values():
        console.print(f"  {path.name}", markup=False, highlight=False)


def _layer_table(report: Report) -> Table:
    table = Table(title=f"Layers of {report.net}", title_justify="left")
    for name, justify in (
        ("layer", "left"), ("type", "left"), ("INT8", "left"), ("scale", "right"),
        ("offset", "right"), ("adds (dB)", "right"), ("in net (dB)", "right"),
        ("saturated", "right"), ("range used", "right"),
    ):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for layer in report.layers:
        if not layer.quantized:
            table.add_row(layer.layer, layer.type, f"no: {layer.reason}", style="dim")
            continue
        e = layer.error
        folded = f" + {len(layer.absorbed)} folded" if layer.absorbed else ""
        measured = ("", "", "", "") if e is None else (
            _db(e.sqnr), _db(e.sqnr_in_net), f"{e.saturation:.3%}", f"{e.range_used:.0%}",
        )  # fmt: skip
        table.add_row(
            layer.layer, layer.type, f"yes{folded}", f"{layer.scale_d:.6g}",
            str(layer.offset_d), *measured,
        )  # fmt: skip
    return table


def _db(value: float) -> str:
    return "exact" if math.isinf(value) and value > 0 else f"{value:.1f}"


def _accuracy_table(report: Report) -> Table:
    samples = report.accuracy[0].samples
    table = Table(title=f"Accuracy on {samples} samples", title_justify="left")
    for name in ("model", "top-1 (%)", "top-5 (%)", "output", "cosine", "SQNR (dB)"):
        table.add_column(name, justify="left" if name in ("model", "output") else "right")
    for score in report.accuracy:
        ranks = [("" if r is None else f"{r:.2f}") for r in (score.top1, score.top5)]
        rows = [(o.blob, f"{o.cosine:.6f}", _db(o.sqnr)) for o in score.outputs]
        for i, row in enumerate(rows or [("", "", "")]):
            table.add_row(*((score.model, *ranks) if i == 0 else ("", "", "")), *row)
    return table


def show_plan(cost: NetCost, batch_size: int, samples: int, console: Console) -> None:
    """Print what would be done to each layer, and what the net costs."""
    table = Table(title="Plan", title_justify="left")
    for name, justify in (
        ("layer", "left"), ("type", "left"), ("INT8", "left"), ("input", "left"),
        ("output", "left"), ("MACs", "right"), ("weights", "right"),
    ):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for c in cost.layers:
        table.add_row(
            c.layer, c.type, c.method if c.quantize else f"no: {c.reason}", _size(c.bottom),
            _size(c.top), f"{c.macs:,}" if c.macs else "", f"{c.weights:,}" if c.weights else "",
            style="" if c.quantize else "dim",
        )  # fmt: skip
    console.print(table)
    share = cost.int8_macs / cost.macs if cost.macs else 0.0
    weights = sum(c.weights for c in cost.layers)
    small = sum(c.weights * (1 if c.quantize else 4) for c in cost.layers)
    for line in (
        f"{cost.macs:,} MACs a sample, {share:.1%} of them in INT8.",
        f"Weights: {weights * 4 / 2**20:.1f} MiB in float, about {small / 2**20:.1f} MiB in INT8.",
        f"Blobs alive at once: at most {cost.peak_values * 4 * batch_size / 2**20:.1f} MiB "
        f"in batches of {batch_size}.",
        f"Calibration would observe {samples} samples.",
    ):
        console.print(line, highlight=False)


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape[1:])) if len(shape) > 1 else str(shape[0] if shape else "")

"""The layers of a report as CSV, one a row, for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

__all__ = ["COLUMNS", "csv_of"]

#: Name of each column, and what it holds.
COLUMNS = {
    "layer": "name",
    "type": "of the layer in the folded net",
    "int8": "1, or 0 in float",
    "reason": "the rule that keeps it in float",
    "absorbed": "layers folded into it, with spaces",
    "method": "the search, with its settings",
    "scale_d": "real value of one step of its data",
    "offset_d": "integer that stands for 0",
    "range_low": "least value that scale and offset can say",
    "range_high": "greatest",
    "data_low": "least value seen",
    "data_high": "greatest",
    "clipped": "share of its data beyond the range, 0 to 1",
    "range_used": "share of the range that its data spans, 0 to 1",
    "adds_db": "SQNR at its output with it alone quantized",
    "net_db": "SQNR at its output with all before it",
    "before_db": "SQNR at its output before its corrections, all before it corrected",
    "after_db": "SQNR behind them",
    "alone_db": "SQNR of the net's outputs with it alone quantized",
    "weights_db": "with its weights alone",
    "data_db": "with its data alone",
    "without_db": "with all quantized but it",
    "macs": "of one sample",
    "weights": "numbers in its blobs",
}


def csv_of(report: Mapping[str, Any]) -> str:
    """Return the layers for the content of a report.json; dB that is infinite is "inf".

    Parameters
    ----------
    report : mapping
        As `pipeline.report.values.to_json` writes it.

    Raises
    ------
    KeyError
        If a key is missing.
    """
    lost = {s["layer"]: s for s in report["sensitivity"]}
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for layer in report["layers"]:
        name = layer["layer"]
        detail = report["details"].get(name, {})
        row = _row(layer, detail, lost.get(name, {}), report["costs"].get(name, {}))
        table.writerow({key: "" if value is None else value for key, value in row.items()})
    return text.getvalue()


def _row(
    layer: Mapping[str, Any],
    detail: Mapping[str, Any],
    lost: Mapping[str, Any],
    cost: Mapping[str, Any],
) -> dict[str, Any]:
    error = layer["error"] or {}
    low, high = detail.get("range", (None, None))
    return {
        "layer": layer["layer"],
        "type": layer["type"],
        "int8": int(layer["quantized"]),
        "reason": layer["reason"],
        "absorbed": " ".join(layer["absorbed"]),
        "method": detail.get("method"),
        "scale_d": layer["scale_d"],
        "offset_d": layer["offset_d"],
        "range_low": low,
        "range_high": high,
        "data_low": detail.get("low"),
        "data_high": detail.get("high"),
        "clipped": error.get("saturation"),
        "range_used": error.get("range_used"),
        "adds_db": error.get("sqnr"),
        "net_db": error.get("sqnr_in_net"),
        "before_db": detail.get("before"),
        "after_db": detail.get("after"),
        **{f"{key}_db": lost.get(key) for key in ("alone", "weights", "data", "without")},
        "macs": cost.get("macs"),
        "weights": cost.get("weights"),
    }

"""The report as one page of HTML: everything is in it, nothing is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

from pipeline.report.advice import cure

__all__ = ["page_of", "style"]

#: What the page draws; the rest of report.json is not for it.
_KEYS = (
    "net", "accuracy", "effort", "trials", "nuq", "data", "notes", "warnings", "seconds", "about",
    "details", "judgement", "sensitive", "fallback",
)  # fmt: skip


def page_of(report: Mapping[str, Any]) -> str:
    """Return the page for the content of a report.json.

    Parameters
    ----------
    report : mapping
        As `pipeline.report.values.to_json` writes it.

    Raises
    ------
    KeyError
        If a key is missing: an older report.json.
    """
    data = {key: report[key] for key in _KEYS}
    costs = report["costs"]
    lost = {s["layer"]: s for s in report["sensitivity"]}
    data["rows"] = [
        _row(layer, costs.get(layer["layer"], {}), lost.get(layer["layer"], {}))
        for layer in report["layers"]
    ]
    data["training"] = _columns(report["training"])
    text = json.dumps(_short(data), separators=(",", ":"), ensure_ascii=False)
    # nothing in it may end the element, or begin another
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    parts = {"TITLE": escape(f"{report['net']} in INT8"), "STYLE": style()}
    parts |= {"SCRIPT": _file("page.js"), "DATA": text}
    return re.sub(r"@([A-Z]+)@", lambda found: parts[found[1]], _file("page.html"))


def style() -> str:
    """Return the look of all pages, as CSS."""
    return _file("page.css")


def _file(name: str) -> str:
    return resources.files("pipeline.report").joinpath("web", name).read_text(encoding="utf-8")


def _columns(training: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a training's points as a list for each of their keys, which is shorter."""
    if training is None:
        return None
    keys = training["points"][0] if training["points"] else ()
    return {**training, "points": {k: [p[k] for p in training["points"]] for k in keys}}


def _row(
    layer: Mapping[str, Any], cost: Mapping[str, Any], lost: Mapping[str, Any]
) -> dict[str, Any]:
    error = layer["error"] or {}
    clipped = error.get("saturation")
    return {
        "layer": layer["layer"], "type": layer["type"], "quantized": layer["quantized"],
        "reason": layer["reason"], "cure": cure(layer["reason"]), "absorbed": layer["absorbed"],
        "scale": layer["scale_d"], "offset": layer["offset_d"],
        "sqnr": error.get("sqnr"), "net": error.get("sqnr_in_net"),
        "clipped": None if clipped is None else 100 * clipped,
        "alone": lost.get("alone"), "weights_only": lost.get("weights"),
        "data_only": lost.get("data"), "without": lost.get("without"),
        "macs": cost.get("macs", 0), "weights": cost.get("weights", 0),
    }  # fmt: skip


def _short(value: Any) -> Any:
    """Return numbers with the six digits that a picture needs."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _short(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_short(v) for v in value]
    return value

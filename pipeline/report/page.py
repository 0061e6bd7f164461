"""The report as one page of HTML: everything is in it, nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from pipeline.report.advice import cure

__all__ = ["page_of"]

_PLACE = "@DATA@"
#: What the page draws; the rest of report.json is not for it.
_KEYS = (
    "net", "accuracy", "effort", "trials", "nuq", "data", "notes", "warnings", "seconds", "about",
    "details", "judgement", "sensitive",
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
    data["rows"] = [_row(layer, costs.get(layer["layer"], {})) for layer in report["layers"]]
    text = json.dumps(_short(data), separators=(",", ":"), ensure_ascii=False)
    # nothing in it may end the element, or begin another
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    template = resources.files("pipeline.report").joinpath("page.html").read_text(encoding="utf-8")
    return template.replace(_PLACE, text)


def _row(layer: Mapping[str, Any], cost: Mapping[str, Any]) -> dict[str, Any]:
    error = layer["error"] or {}
    clipped = error.get("saturation")
    return {
        "layer": layer["layer"], "type": layer["type"], "quantized": layer["quantized"],
        "reason": layer["reason"], "cure": cure(layer["reason"]), "absorbed": layer["absorbed"],
        "scale": layer["scale_d"], "offset": layer["offset_d"],
        "sqnr": error.get("sqnr"), "net": error.get("sqnr_in_net"),
        "clipped": None if clipped is None else 100 * clipped,
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

"""Two or more runs beside each other: accuracy, and the layers that changed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

from caffeio import CaffeFileError
from caffeio.files import read_json
from pipeline.report.fit import Column, fitted_table, plain_table
from pipeline.report.page import style
from pipeline.report.values import SCHEMA

__all__ = [
    "RunRead",
    "changed_layers",
    "comparison_page",
    "read_run",
    "short_names",
    "show_comparison",
]


@dataclass(frozen=True)
class RunRead:
    """A run as its report.json tells it.

    Attributes
    ----------
    name : str
        What it is called; a folder.
    report : mapping
    """

    name: str
    report: Mapping[str, Any]

    @property
    def layers(self) -> dict[str, Mapping[str, Any]]:
        """Its layers by name."""
        return {layer["layer"]: layer for layer in self.report["layers"]}


def read_run(folder: str | Path, name: str | None = None) -> RunRead:
    """Read the report of a run.

    Parameters
    ----------
    folder : path-like
        The run's, or its report.json.
    name : str, optional
        What to call it; by default as the folder.

    Raises
    ------
    CaffeFileError
        If there is none, or it is of another version.
    """
    path = Path(folder)
    path = path / "report.json" if path.is_dir() else path
    report = read_json(path)
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise CaffeFileError(path, f"is no report of schema {SCHEMA}; run the config again")
    return RunRead(name or str(folder), report)


def _summary(layer: Mapping[str, Any] | None, details: Mapping[str, Any]) -> tuple[str, ...]:
    """Return state, method, scale, offset and error of a layer, as text."""
    if layer is None:
        return ("not there", "", "", "", "")
    if not layer["quantized"]:
        return ("float", layer["reason"], "", "", "")
    error = (layer["error"] or {}).get("sqnr")
    db = "" if error is None else error if isinstance(error, str) else f"{error:.1f}"
    method = details.get(layer["layer"], {}).get("method", "")
    return ("INT8", method, f"{layer['scale_d']:.4g}", str(layer["offset_d"]), db)


def changed_layers(runs: Sequence[RunRead]) -> dict[str, list[tuple[str, ...]]]:
    """Return state, method, scale, offset and dB of each layer that is not alike in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.layers)
    found = {}
    for name in names:
        rows = [_summary(run.layers.get(name), run.report.get("details", {})) for run in runs]
        if any(row != rows[0] for row in rows):
            found[name] = rows
    return found


def _accuracy(run: RunRead) -> list[tuple[str, ...]]:
    rows = []
    for score in run.report["accuracy"]:
        ranks = ["" if score[k] is None else f"{score[k]:.2f}" for k in ("top1", "top5")]
        values = [o["sample_sqnr"] for o in score["outputs"]]
        dbs = [v if isinstance(v, str) else "" if v is None else f"{v:.1f}" for v in values]
        rows.append((score["model"], *ranks, ", ".join(dbs)))
    return rows


def short_names(folders: Sequence[str]) -> list[str]:
    """Return what tells folders apart: without the path that they have in common.

    Examples
    --------
    >>> short_names(["runs/kl/out", "runs/best/out"])
    ['kl/out', 'best/out']
    >>> short_names(["runs/a", "runs/a/b"])
    ['a', 'a/b']
    """
    paths = [Path(folder) for folder in folders]
    if len({path.is_absolute() for path in paths}) > 1 or len(set(paths)) == 1:
        return list(folders)
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [str(path.relative_to(common)) for path in paths]


#: What is shown of a layer that changed.
_CHANGED = ("layer", "run", "state", "method", "scale", "offset", "adds dB")


def _changed_rows(
    runs: Sequence[RunRead], changed: Mapping[str, Sequence[tuple[str, ...]]]
) -> list[tuple[str, ...]]:
    """Return a row for each run of each layer, the layer's name in the first."""
    return [
        (name if i == 0 else "", run.name, *row)
        for name, rows in changed.items()
        for i, (run, row) in enumerate(zip(runs, rows, strict=True))
    ]


def show_comparison(runs: Sequence[RunRead], console: Console) -> None:
    """Print accuracy of all runs, and the layers that changed."""
    table = plain_table("Accuracy", "run", "model", "top-1 %", "top-5 %", "mean dB", left=2)
    for run in runs:
        for i, row in enumerate(_accuracy(run)):
            table.add_row(run.name if i == 0 else "", *row)
    console.print(table)
    changed = changed_layers(runs)
    if not changed:
        console.print("All layers are alike.", highlight=False)
        return
    rows = _changed_rows(runs, changed)
    cells = [list(column) for column in zip(*rows, strict=True)]
    method = _CHANGED.index("method")
    cells[method] = [text.partition("(")[0] for text in cells[method]]  # settings: on the page
    ranks = {"method": 3, "offset": 2, "scale": 1}
    columns = [
        Column(name, column, left=i < 4, rank=ranks.get(name, 0))
        for i, (name, column) in enumerate(zip(_CHANGED, cells, strict=True))
    ]
    title = f"{len(changed)} layers changed" if len(changed) > 1 else "1 layer changed"
    console.print(fitted_table(title, columns, console.width))


def comparison_page(runs: Sequence[RunRead]) -> str:
    """Return the comparison as one page of HTML."""

    def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        lines = ["<tr>" + "".join(f"<th>{escape(h)}</th>" for h in head) + "</tr>"]
        lines += ["<tr>" + "".join(f"<td>{escape(v)}</td>" for v in r) + "</tr>" for r in rows]
        return f'<div class="scroll"><table>{"".join(lines)}</table></div>'

    scores = [(run.name, *row) for run in runs for row in _accuracy(run)]
    changed = changed_layers(runs)
    names = " and ".join(run.name for run in runs)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(names)}</title><style>{style()}</style></head><body>"
        f"<h1>{escape(names)}</h1><h2>Accuracy</h2>"
        + table(("run", "model", "top-1 %", "top-5 %", "mean dB"), scores)
        + f"<h2>Layers that changed: {len(changed)}</h2>"
        + table(_CHANGED, _changed_rows(runs, changed))
        + "</body></html>\n"
    )

"""Tables of layers in the terminal: in INT8, in float, and what a run would do to them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from pipeline.layers.int8 import INT8_TYPES
from pipeline.report.advice import cure
from pipeline.report.cost import LayerCost
from pipeline.report.fit import Column, decibels, explain, fitted_table, plain_table
from pipeline.report.plan import Plan
from pipeline.report.values import LayerReport, Report

__all__ = ["show_layers", "show_plan_layers"]


def show_layers(report: Report, console: Console, *, by_error: bool = False) -> None:
    """Print the layers in INT8, those in float that cost, and how many there are beside them.

    Parameters
    ----------
    report : Report
    console : Console
    by_error : bool
        The layers that add most error first, not in the order of the net.
    """
    layers = [layer for layer in report.layers if layer.quantized]
    if by_error:
        layers.sort(key=lambda x: math.inf if x.error is None else x.error.sqnr)
    console.print(_quantized_table(report, layers, console.width))
    if any(layer.error for layer in layers):
        explain(
            console,
            "adds: SQNR at its output with it alone quantized; net: with all before it. "
            "clipped: share of its input beyond the range; used: share of the range.",
        )
    folded = [name for layer in report.layers for name in layer.absorbed]
    others = [x for x in report.layers if not x.quantized]
    costly = {x.layer for x in others if _costs(x, report)}
    _show_float([_InFloat(x.layer, x.type, x.reason, x.layer in costly) for x in others], console)
    if folded:
        word = "layer is" if len(folded) == 1 else "layers are"
        console.print(f"{len(folded)} {word} folded into those in front.", highlight=False)


@dataclass(frozen=True)
class _InFloat:
    """A layer in float, and whether it costs anything that INT8 would save."""

    layer: str
    type: str
    reason: str
    costs: bool


def _costs(layer: LayerReport, report: Report) -> bool:
    cost = report.costs.get(layer.layer)
    if cost is None:
        return layer.type in INT8_TYPES or bool(cure(layer.reason))
    return bool(cost.macs or cost.weights or cure(layer.reason))


def _quantized_table(report: Report, layers: Sequence[LayerReport], width: int) -> Table:
    errors = [layer.error for layer in layers]

    def numbers(name: str, form: str) -> list[str]:
        return ["" if e is None else format(getattr(e, name), form) for e in errors]

    lost = {s.layer: s.alone for s in report.sensitivity}
    columns = [
        Column("layer", [x.layer for x in layers], left=True),
        Column("type", [x.type for x in layers], left=True, rank=1),
        Column("scale", [f"{x.scale_d:.4g}" for x in layers], rank=2),
        Column("offset", [str(x.offset_d) for x in layers], rank=3),
        Column("adds dB", ["" if e is None else decibels(e.sqnr) for e in errors]),
        Column("net dB", ["" if e is None else decibels(e.sqnr_in_net) for e in errors]),
        Column("clipped", numbers("saturation", ".3%"), rank=4),
        Column("used", numbers("range_used", ".0%"), rank=5),
    ]
    if lost:
        cells = [decibels(lost.get(x.layer, math.nan)) for x in layers]
        columns.insert(6, Column("whole net dB", cells))
    title = f"{len(layers)} layers of {report.net} in INT8"
    return fitted_table(title, columns, width)


def _show_float(layers: Iterable[_InFloat], console: Console) -> None:
    """Print layers in float by the rule; those that cost nothing only as a number of each type."""
    by_rule: dict[str, list[str]] = {}
    others: Counter[str] = Counter()
    for x in layers:
        if x.costs:
            by_rule.setdefault(x.reason, []).append(x.layer)
        else:
            others[x.type] += 1
    if by_rule:
        count = sum(map(len, by_rule.values()))
        title = f"{count} layers in float" if count > 1 else "1 layer in float"
        table = plain_table(title, "because", "layers", left=2)
        for reason, names in by_rule.items():
            table.add_row(reason, ", ".join(names))
        console.print(table)
    if others:
        kinds = ", ".join(f"{number} {kind}" for kind, number in others.most_common())
        console.print(
            f"Layers without weights or MACs, which lose nothing in float: {kinds}.",
            highlight=False,
        )


def show_plan_layers(plan: Plan, console: Console, *, by_macs: bool = False) -> None:
    """Print what would become of each layer that costs anything, and the others as numbers."""
    layers = list(plan.cost.layers)
    costly = [c for c in layers if c.quantize or c.macs or c.weights]
    if by_macs:
        costly.sort(key=lambda c: -c.macs)
    columns = [
        Column("layer", [c.layer for c in costly], left=True),
        Column("type", [c.type for c in costly], left=True, rank=2),
        Column("as", [c.method if c.quantize else "float" for c in costly], left=True),
        Column("output", [_size(c.top) for c in costly], left=True, rank=1),
        Column("MACs", _counts(c.macs for c in costly)),
        Column("weights", _counts(c.weights for c in costly)),
    ]
    console.print(fitted_table("Plan", columns, console.width))
    _show_float(
        [_InFloat(c.layer, c.type, c.reason, _is_costly(c)) for c in layers if not c.quantize],
        console,
    )


def _is_costly(c: LayerCost) -> bool:
    return bool(c.macs or c.weights or cure(c.reason))


def _counts(numbers: Iterable[int]) -> list[str]:
    return [f"{n:,}" if n else "" for n in numbers]


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape[1:])) if len(shape) > 1 else str(shape[0] if shape else "")

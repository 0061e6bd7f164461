"""The result of a run, and what it would do, as tables in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.quantize.evaluate import ModelScore
from pipeline.quantize.fallback import FallbackResult
from pipeline.quantize.levels import NuqResult
from pipeline.quantize.sensitivity import Sensitivity, half_of_the_noise
from pipeline.report.data_tables import show_data, show_notes, show_warnings
from pipeline.report.plan import Plan
from pipeline.report.values import Report

__all__ = [
    "accuracy_table",
    "plain_table",
    "show_files",
    "show_plan",
    "show_report",
    "show_sensitivity",
    "wide",
]


def show_report(report: Report, console: Console) -> None:
    """Print the tables: layers first, then the accuracy that they lead to."""
    console.print(_quantized_table(report))
    console.print(_float_table(report))
    if len(report.trials) > 1:
        _show_trials(report, console)
    if report.fallback is not None:
        _show_fallback(report.fallback, console)
    if report.nuq is not None:
        _show_nuq(report.nuq, console)
    if report.accuracy:
        console.print(accuracy_table(report.accuracy))
        if any(score.metrics for score in report.accuracy):
            console.print(_metric_table(report))
        if any(score.detections for score in report.accuracy):
            console.print(_detection_table(report))
    if report.data is not None:
        show_data(report.data, console)
    show_notes(report.notes, console)
    show_files(report.files, console)
    _show_end(report, console)
    show_warnings(report.warnings, console)


def _show_end(report: Report, console: Console) -> None:
    """Print how good it is and what to try, the worst layers to paste, time and memory."""
    if report.sensitive and report.effort != "original":
        names = ", ".join(f'"{name}"' for name in report.sensitive)
        console.print("The layers that add most error; to leave them in float:", highlight=False)
        console.print(f"  skip_layers = [{names}]", markup=False, highlight=False, soft_wrap=True)
    peak = report.about.get("peak_memory_bytes", 0) / 2**20
    seconds = sum(report.seconds.values())
    memory = f", {peak:.0f} MiB at most" if peak else ""
    console.print(f"{seconds:.1f} s{memory}. {report.judgement}", markup=False, highlight=False)


def wide(console: Console) -> Console:
    """Give tables room where the output is not a terminal, so that nothing is cut off."""
    if not console.is_terminal:
        console.width = 120
    return console


def show_sensitivity(layers: Sequence[Sensitivity], console: Console) -> None:
    """Print what each layer loses, and the config's line that leaves the worst in float."""
    table = plain_table(
        "Sensitivity", "layer", "type", "alone dB", "weights dB", "data dB", "without dB", left=2
    )
    table.caption = (
        "SQNR of the outputs, mean of some samples. alone: with nothing quantized but this layer;\n"
        "weights, data: but its weights, its data; without: with all quantized but this layer."
    )
    table.caption_justify = "left"
    for s in layers:
        numbers = (s.alone, s.weights, s.data, s.without)
        table.add_row(s.layer, s.type, *map(_db, numbers))
    console.print(table)
    if not half_of_the_noise(layers):
        return
    worst = ", ".join(f'"{name}"' for name in half_of_the_noise(layers))
    console.print("These layers make half of the noise; to leave them in float:", highlight=False)
    console.print(f"  skip_layers = [{worst}]", markup=False, highlight=False, soft_wrap=True)


def show_files(files: Mapping[str, Path], console: Console) -> None:
    """Print what was written."""
    folder = next(iter(files.values())).parent
    console.print(f"Written to {folder}:", markup=False, highlight=False, soft_wrap=True)
    for path in files.values():
        console.print(f"  {path.name}", markup=False, highlight=False)


def plain_table(title: str, *columns: str, left: int) -> Table:
    """Return an empty table narrow enough for 80 characters; the first `left` columns are text."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < left else "right", overflow="fold")
    return table


def _quantized_table(report: Report) -> Table:
    layers = [layer for layer in report.layers if layer.quantized]
    table = plain_table(
        f"{len(layers)} layers of {report.net} in INT8",
        "layer", "type", "scale", "offset", "adds dB", "net dB", "clipped", "used",
        left=2,
    )  # fmt: skip
    table.caption = (
        "adds: SQNR at its output with it alone quantized; net: with all before it.\n"
        "clipped: share of its input beyond the range; used: share of the range."
    )
    table.caption_justify = "left"
    for layer in layers:
        e = layer.error
        measured = ("", "", "", "") if e is None else (
            _db(e.sqnr), _db(e.sqnr_in_net), f"{e.saturation:.3%}", f"{e.range_used:.0%}",
        )  # fmt: skip
        kind = layer.type + (f" +{len(layer.absorbed)}" if layer.absorbed else "")
        table.add_row(layer.layer, kind, f"{layer.scale_d:.4g}", str(layer.offset_d), *measured)
    return table


def _float_table(report: Report) -> Table:
    by_rule: dict[str, list[str]] = {}
    for layer in report.layers:
        if not layer.quantized:
            by_rule.setdefault(layer.reason, []).append(layer.layer)
    count = sum(map(len, by_rule.values()))
    table = plain_table(f"{count} layers in float", "because", "layers", left=2)
    for reason, names in by_rule.items():
        table.add_row(reason, ", ".join(names))
    return table


def _db(value: float) -> str:
    if math.isnan(value):
        return ""
    return "exact" if math.isinf(value) and value > 0 else f"{value:.1f}"


def _show_trials(report: Report, console: Console) -> None:
    table = plain_table(f"Effort: {report.effort}", "step", "mean dB", "", left=1)
    for trial in report.trials:
        table.add_row(trial.step, _db(trial.sqnr), "" if trial.kept else "undone")
    console.print(table)
    lines = ["SQNR of the outputs on calibration samples held back, with all steps before."]
    if report.effort == "standard":
        lines.append('effort = "best" won 0.4 to 4 dB more on real nets, in six times the seconds.')
    for line in lines:
        console.print(line, style="italic dim", markup=False, highlight=False)


def _show_fallback(found: FallbackResult, console: Console) -> None:
    table = plain_table("Fallback", "layers in float", "number", "metric", "", left=1)
    for trial in found.trials:
        number = str(len(trial.in_float))
        table.add_row(trial.what, number, f"{trial.value:.2f}", "enough" if trial.reached else "")
    console.print(table)
    enough = "" if found.reached else ", the best found, which is not enough"
    console.print(f"Taken: {found.value:.2f}{enough}.", highlight=False)
    if found.in_float:
        names = ", ".join(f'"{name}"' for name in found.in_float)
        console.print("The same layers in float, without a search:", highlight=False)
        console.print(f"  skip_layers = [{names}]", markup=False, highlight=False, soft_wrap=True)


def _show_nuq(found: NuqResult, console: Console) -> None:
    table = plain_table(
        f"Weights of few values in {len(found.layers)} layers",
        "layer", "values", "int8 bytes", "coded before", "coded",
        left=1,
    )  # fmt: skip
    table.caption = "coded: bytes of an ideal entropy code, its table included."
    table.caption_justify = "left"
    sizes = [(x.weights, x.coded_before, x.coded) for x in found.layers]
    for layer, size in zip(found.layers, sizes, strict=True):
        table.add_row(layer.layer, str(layer.levels), *(f"{n:,}" for n in size))
    table.add_section()
    table.add_row("all", "", *(f"{sum(n):,}" for n in zip(*sizes, strict=True)))
    console.print(table)
    if found.search is None:
        return
    kept = len(found.search.in_float)
    reached = "" if found.search.reached else ", which is not enough: it is the best found"
    console.print(
        f"{kept} layers keep all values; the metric is then {found.search.value:.2f}{reached}.",
        highlight=False,
    )


def accuracy_table(scores: Sequence[ModelScore]) -> Table:
    """Return the accuracy of models, and how close they are to the first."""
    table = plain_table(
        f"Accuracy on {scores[0].samples} samples",
        "model", "output", "cosine", "SQNR dB", "mean dB", "top-1 %", "top-5 %",
        left=2,
    )  # fmt: skip
    table.caption = "SQNR: of all samples together; mean: of each sample's own."
    table.caption_justify = "left"
    for score in scores:
        ranks = [("" if r is None else f"{r:.2f}") for r in (score.top1, score.top5)]
        rows = [(o.blob, f"{o.cosine:.6f}", _db(o.sqnr), _db(o.sample_sqnr)) for o in score.outputs]
        for i, row in enumerate(rows or [("", "", "", "")]):
            table.add_row(score.model if i == 0 else "", *row, *(ranks if i == 0 else ("", "")))
    return table


def _metric_table(report: Report) -> Table:
    names = list(dict.fromkeys(name for score in report.accuracy for name in score.metrics))
    table = plain_table("Metrics", "model", *names, left=1)
    for score in report.accuracy:
        found = [score.metrics.get(name) for name in names]
        table.add_row(score.model, *("" if v is None else f"{v:.4g}" for v in found))
    return table


def _detection_table(report: Report) -> Table:
    table = plain_table(
        "Detections", "model", "output", "boxes", "in float", "IoU 0.5", "IoU 0.75", "score off by",
        left=2,
    )  # fmt: skip
    table.caption = (
        "IoU: share of both models' boxes that have a match of their class with such an overlap."
    )
    table.caption_justify = "left"
    for score in report.accuracy:
        for d in score.detections:
            shares = (_share(d.matched_50), _share(d.matched_75))
            error = "" if math.isnan(d.score_error) else f"{d.score_error:.4f}"
            table.add_row(score.model, d.blob, str(d.boxes), str(d.float_boxes), *shares, error)
    return table


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1%}"


def show_plan(plan: Plan, console: Console) -> None:
    """Print what would be done to each layer, and what the net costs."""
    cost = plan.cost
    table = plain_table("Plan", "layer", "type", "INT8", "output", "MACs", "weights", left=4)
    for c in cost.layers:
        table.add_row(
            c.layer, c.type, c.method if c.quantize else f"no: {c.reason}", _size(c.top),
            f"{c.macs:,}" if c.macs else "", f"{c.weights:,}" if c.weights else "",
            style="" if c.quantize else "dim",
        )  # fmt: skip
    console.print(table)
    share = cost.int8_macs / cost.macs if cost.macs else 0.0
    weights = sum(c.weights for c in cost.layers)
    small = sum(c.weights * (1 if c.quantize else 4) for c in cost.layers)
    for line in (
        f"{cost.macs:,} MACs a sample, {share:.1%} of them in INT8.",
        f"Weights: {weights * 4 / 2**20:.1f} MiB in float, about {small / 2**20:.1f} MiB in INT8.",
        f"Blobs alive at once: at most {cost.peak_values * 4 * plan.batch_size / 2**20:.1f} MiB "
        f"in batches of {plan.batch_size}.",
        f"Memory of the whole run: about {plan.memory / 2**20:.0f} MiB.",
        f"Calibration would observe {plan.samples} samples ({plan.choice})."
        if plan.samples
        else "No calibration: the factors are those of the record.",
    ):
        console.print(line, highlight=False)
    show_notes(plan.notes, console)
    show_warnings(plan.warnings, console)


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape[1:])) if len(shape) > 1 else str(shape[0] if shape else "")

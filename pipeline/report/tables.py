"""The result of a run, and what it would do, as tables in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.quantize.evaluate import ModelScore
from pipeline.quantize.fallback import FallbackResult
from pipeline.quantize.levels import NuqResult
from pipeline.quantize.sensitivity import Sensitivity, half_of_the_noise
from pipeline.report.data_tables import show_data, show_notes, show_warnings
from pipeline.report.fit import Column, decibels, explain, fitted_table, plain_table
from pipeline.report.layer_tables import show_layers, show_plan_layers
from pipeline.report.plan import Plan
from pipeline.report.values import Report

__all__ = [
    "show_accuracy",
    "show_files",
    "show_plan",
    "show_report",
    "show_sensitivity",
    "wide",
]


def show_report(report: Report, console: Console, *, by_error: bool = False) -> None:
    """Print the tables: layers first, then the accuracy that they lead to.

    `by_error`: the layers that add most error first.
    """
    show_layers(report, console, by_error=by_error)
    if len(report.trials) > 1:
        _show_trials(report, console)
    if report.fallback is not None:
        _show_fallback(report.fallback, console)
    if report.nuq is not None:
        _show_nuq(report.nuq, console)
    if report.accuracy:
        show_accuracy(report.accuracy, console)
        if any(score.metrics for score in report.accuracy):
            console.print(_metric_table(report))
        if any(score.detections for score in report.accuracy):
            _show_detections(report, console)
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
        why = "The net loses most by" if report.sensitivity else "Most error is added by"
        console.print(f"{why} these layers; to leave them in float:", highlight=False)
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
    columns = [
        Column("layer", [s.layer for s in layers], left=True),
        Column("type", [s.type for s in layers], left=True, rank=1),
        *(
            Column(f"{name} dB", [decibels(getattr(s, name)) for s in layers])
            for name in ("alone", "weights", "data", "without")
        ),
    ]
    console.print(fitted_table("Sensitivity", columns, console.width))
    explain(
        console,
        "SQNR of the outputs, mean of some samples. alone: with nothing quantized but this "
        "layer; weights, data: but its weights, its data; without: with all quantized but this "
        "layer.",
    )
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


def _show_trials(report: Report, console: Console) -> None:
    table = plain_table(f"Effort: {report.effort}", "step", "mean dB", "", left=1)
    for trial in report.trials:
        table.add_row(trial.step, decibels(trial.sqnr), "" if trial.kept else "undone")
    console.print(table)
    lines = ["SQNR of the outputs on calibration samples held back, with all steps before."]
    if report.effort == "standard":
        lines.append('effort = "best" won 0.4 to 4 dB more on real nets, in six times the seconds.')
    explain(console, *lines)


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
    sizes = [(x.weights, x.coded_before, x.coded) for x in found.layers]
    for layer, size in zip(found.layers, sizes, strict=True):
        table.add_row(layer.layer, str(layer.levels), *(f"{n:,}" for n in size))
    table.add_section()
    table.add_row("all", "", *(f"{sum(n):,}" for n in zip(*sizes, strict=True)))
    console.print(table)
    explain(console, "coded: bytes of an ideal entropy code, its table included.")
    if found.search is None:
        return
    kept = len(found.search.in_float)
    reached = "" if found.search.reached else ", which is not enough: it is the best found"
    console.print(
        f"{kept} layers keep all values; the metric is then {found.search.value:.2f}{reached}.",
        highlight=False,
    )


def show_accuracy(scores: Sequence[ModelScore], console: Console) -> None:
    """Print the accuracy of models, and how close they are to the first."""
    table = plain_table(
        f"Accuracy on {scores[0].samples} samples",
        "model", "output", "cosine", "SQNR dB", "mean dB", "top-1 %", "top-5 %",
        left=2,
    )  # fmt: skip
    for score in scores:
        ranks = [("" if r is None else f"{r:.2f}") for r in (score.top1, score.top5)]
        rows = [
            (o.blob, f"{o.cosine:.6f}", decibels(o.sqnr), decibels(o.sample_sqnr))
            for o in score.outputs
        ]
        for i, row in enumerate(rows or [("", "", "", "")]):
            table.add_row(score.model if i == 0 else "", *row, *(ranks if i == 0 else ("", "")))
    console.print(table)
    explain(console, "SQNR: of all samples together; mean: of each sample's own.")


def _metric_table(report: Report) -> Table:
    names = list(dict.fromkeys(name for score in report.accuracy for name in score.metrics))
    table = plain_table("Metrics", "model", *names, left=1)
    for score in report.accuracy:
        found = [score.metrics.get(name) for name in names]
        table.add_row(score.model, *("" if v is None else f"{v:.4g}" for v in found))
    return table


def _show_detections(report: Report, console: Console) -> None:
    table = plain_table(
        "Detections", "model", "output", "boxes", "in float", "IoU 0.5", "IoU 0.75", "score off by",
        left=2,
    )  # fmt: skip
    for score in report.accuracy:
        for d in score.detections:
            shares = (_share(d.matched_50), _share(d.matched_75))
            error = "" if math.isnan(d.score_error) else f"{d.score_error:.4f}"
            table.add_row(score.model, d.blob, str(d.boxes), str(d.float_boxes), *shares, error)
    console.print(table)
    explain(
        console,
        "IoU: share of both models' boxes that have a match of their class with such an overlap.",
    )


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1%}"


def show_plan(plan: Plan, console: Console, *, by_macs: bool = False) -> None:
    """Print what would be done to each layer, and what the net costs.

    `by_macs`: the layers that cost most first.
    """
    cost = plan.cost
    show_plan_layers(plan, console, by_macs=by_macs)
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

"""The course of a training: a table in CSV and a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from caffeio import atomic_write

__all__ = ["Point", "draw_curve", "write_curve"]


@dataclass(frozen=True)
class Point:
    """One iteration.

    Attributes
    ----------
    iteration : int
        Counted from 0.
    loss : float or None
        Of its training batches; None after the last iteration, where only a test is left.
    rate : float or None
        Learning rate.
    metric, test_loss : float or None
        Of the test before this iteration, if there was one.
    """

    iteration: int
    loss: float | None = None
    rate: float | None = None
    metric: float | None = None
    test_loss: float | None = None


def write_curve(points: Sequence[Point], path: Path) -> None:
    """Write the points as CSV, one a line."""
    with (
        atomic_write(path, overwrite=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(f.name for f in fields(Point))
        table.writerows(["" if v is None else v for v in astuple(p)] for p in points)


def draw_curve(points: Sequence[Point], metric: str, path: Path) -> None:
    """Draw loss and metric over the iterations, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.add_subplot()
    losses = [(p.iteration, p.loss) for p in points if p.loss is not None]
    axis.plot([i for i, _ in losses], [loss for _, loss in losses], lw=0.6)
    axis.set(xlabel="iteration", ylabel="training loss")
    axis.set_ylim(bottom=0)
    tests = [(p.iteration, p.metric) for p in points if p.metric is not None]
    if tests:
        other = axis.twinx()
        other.plot([i for i, _ in tests], [m for _, m in tests], "o-", color="tab:orange")
        other.set_ylabel(f"test {metric}")
    with atomic_write(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

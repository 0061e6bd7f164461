"""The course of a training: a table in CSV and a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from caffeio import atomic_write

__all__ = ["Point", "Training", "draw_curve", "write_curve"]


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


@dataclass(frozen=True)
class Training:
    """The course of a training.

    Attributes
    ----------
    metric : str
        What tests measure; empty without tests.
    points : tuple of Point
    best : int or None
        The iteration whose weights were kept, if tests chose them.
    """

    metric: str
    points: tuple[Point, ...]
    best: int | None = None

    def thinned(self, most: int = 500) -> Training:
        """Return it with at most so many points without a test, evenly chosen, and all tests."""
        plain = [i for i, p in enumerate(self.points) if p.metric is None]
        step = max(1, -(-len(plain) // most))
        kept = {*plain[::step], *(i for i, p in enumerate(self.points) if p.metric is not None)}
        return replace(self, points=tuple(self.points[i] for i in sorted(kept)))


def write_curve(points: Sequence[Point], path: Path) -> None:
    """Write the points as CSV, one a line."""
    with (
        atomic_write(path, overwrite=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(f.name for f in fields(Point))
        table.writerows(["" if v is None else v for v in astuple(p)] for p in points)


def draw_curve(training: Training, path: Path, title: str) -> None:
    """Draw loss and metric over the iterations, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.add_subplot()
    losses = [(p.iteration, p.loss) for p in training.points if p.loss is not None]
    lines = axis.plot(*_columns(losses), lw=0.6, label="training loss")
    axis.set(xlabel="iteration", ylabel="training loss", title=title)
    axis.set_ylim(bottom=0)
    tests = [(p.iteration, p.metric) for p in training.points if p.metric is not None]
    if tests:
        other = axis.twinx()
        label = f"test {training.metric}"
        lines += other.plot(*_columns(tests), "o-", color="tab:orange", label=label)
        other.set_ylabel(label)
    if training.best is not None:
        lines.append(axis.axvline(training.best, color="gray", ls="--", lw=0.8, label="kept"))
    axis.legend(handles=lines, loc="best")
    with atomic_write(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _columns(pairs: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [i for i, _ in pairs], [value for _, value in pairs]

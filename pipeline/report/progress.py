"""What a person sees while the work goes on; silent when asked to be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from kernels import cache_problem, on_compile
from pipeline.log import log, said
from pipeline.report.console import PlainConsole

__all__ = ["Reporter", "TrainingProgress"]

T = TypeVar("T")
#: Seconds between two lines about a training in a log.
_LOG_EVERY = 10.0


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is.

    Attributes
    ----------
    iteration, total : int
        Done, and in all.
    speed : float
        Samples a second.
    left : float
        Seconds to the end, without tests.
    loss, rate : float or None
        Of the last iteration; None for a test.
    metric : float or None
        Of a test.
    """

    iteration: int
    total: int
    speed: float
    left: float
    loss: float | None = None
    rate: float | None = None
    metric: float | None = None


class Reporter:
    """Progress bars and remarks on one console.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    console : rich.console.Console, optional
        Where to show it; standard error by default.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or PlainConsole(stderr=True, quiet=quiet)
        #: the bar that is shown, and its task
        self._bar: tuple[Progress, TaskID] | None = None

    def say(self, line: str, style: str = "") -> None:
        """Show a line."""
        said.info("%s", line)
        self.console.print(line, style=style, markup=False, highlight=False)

    @contextmanager
    def compiling(self, device: str) -> Iterator[None]:
        """Show which kernels are compiled meanwhile, and at the end how long that took."""
        found = _Compiles(self)
        with on_compile(device, found):
            yield
        if found.count:
            after = "" if cache_problem(device) else "; the next run has them"
            self.say(f"compiled {found.count} kernels in {found.seconds:.1f} s{after}")

    def track(
        self, items: Iterable[T], what: str, total: int | None, unit: str = "batches"
    ) -> Iterator[T]:
        """Yield the items while a bar named `what` counts them; in a log, one line says so."""
        if not self.console.is_terminal:
            self.say(f"{what} ({total} {unit}) ..." if total else f"{what} ...")
            yield from items
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(what, total=total, note="")
            self._bar = bar, task
            try:
                for item in items:
                    yield item
                    bar.advance(task)
            finally:
                self._bar = None

    def note(self, text: str) -> None:
        """Show a text at the bar that is there; on a terminal, else nowhere."""
        if self._bar is not None:
            self._bar[0].update(self._bar[1], note=text)

    @contextmanager
    def training(self, metric: str) -> Iterator[Callable[[TrainingProgress], None]]:
        """Give a function that shows how far a training is; `metric` is what tests measure."""
        if not self.console.is_terminal:
            yield _Log(self, metric)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("", total=None)

            def show(now: TrainingProgress) -> None:
                _log_step(now)
                if now.metric is not None:
                    self.say(_test_line(now, metric))
                    return
                text = f"loss {now.loss:.4g}, rate {now.rate:.3g}, {now.speed:.0f} images/s"
                bar.update(task, completed=now.iteration, total=now.total, description=text)

            yield show


class _Compiles:
    """Shows the kernels that are compiled: a line for the first, then at the bar that is there."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.count, self.seconds = 0, 0.0

    def __call__(self, kernel: str, count: int, seconds: float) -> None:
        if not self.count:
            self._reporter.say("compiling kernels for this processor ...")
        self.count, self.seconds = count, seconds
        log.debug("compiling %s (number %d, after %.1f s)", kernel, count, seconds)
        text = f"compiling {kernel} ({count}, {seconds:.0f} s)" if kernel else ""
        self._reporter.note(text)


class _Log:
    """Writes a line about a training now and then, and one for each test."""

    def __init__(self, reporter: Reporter, metric: str) -> None:
        self._reporter = reporter
        self._metric = metric
        self._last = 0.0

    def __call__(self, now: TrainingProgress) -> None:
        _log_step(now)
        if now.metric is not None:
            self._reporter.say(_test_line(now, self._metric))
            return
        if time.monotonic() - self._last < _LOG_EVERY:
            return
        self._last = time.monotonic()
        self._reporter.say(
            f"train: iteration {now.iteration} of {now.total}, loss {now.loss:.4g}, "
            f"rate {now.rate:.3g}, {now.speed:.0f} images/s, {_duration(now.left)} left"
        )


def _log_step(now: TrainingProgress) -> None:
    if now.loss is not None:
        log.debug("train: iteration %d, loss %.6g, rate %.4g", now.iteration, now.loss, now.rate)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _test_line(now: TrainingProgress, metric: str) -> str:
    return f"test at iteration {now.iteration}: {metric} {now.metric:.4f}"

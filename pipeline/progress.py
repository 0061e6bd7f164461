"""What a person sees while the work goes on; silent when asked to be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

__all__ = ["Reporter"]

T = TypeVar("T")


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
        self.console = console or Console(stderr=True, quiet=quiet)

    def say(self, line: str, style: str = "") -> None:
        """Show a line."""
        self.console.print(line, style=style, markup=False, highlight=False)

    def compiling(self) -> None:
        """Say why the first run takes longer."""
        self.say("compiling kernels for this processor, some 15 seconds, only this once ...")

    def track(self, items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
        """Yield the items while a bar named `what` counts them; in a log, one line says so."""
        if not self.console.is_terminal:
            self.say(f"{what} ({total} batches) ..." if total else f"{what} ...")
            yield from items
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            for item in items:
                yield item
                bar.advance(task)

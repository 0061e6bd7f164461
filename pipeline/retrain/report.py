"""What a training without an INT8 model ends with, in the terminal."""

from __future__ import annotations

from rich.console import Console

from pipeline.report.tables import show_files
from pipeline.retrain.job import Trained

__all__ = ["show_trained"]


def show_trained(trained: Trained, console: Console) -> None:
    """Print what was reached and written."""
    lines = [f"{trained.net}: {trained.iterations} iterations"]
    if trained.best is not None:
        begin = "" if trained.first is None else f", {trained.first:.4f} before the first"
        lines.append(f"{trained.metric} {trained.best:.4f} at iteration {trained.at}{begin}")
    lines += [f"note: {note}" for note in trained.notes]
    for line in lines:
        console.print(line, markup=False, highlight=False)
    show_files(trained.files, console)

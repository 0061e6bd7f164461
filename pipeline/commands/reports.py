"""``caffe-quant report DIR`` and ``caffe-quant compare A B``: looking at runs that were made."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

__all__ = ["compare", "report"]


def report(arguments: Sequence[str]) -> int:
    """Make page and table of a run again from its report.json; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="caffe-quant report",
        description="Make report.html and report.csv again from a run's report.json.",
    )
    parser.add_argument("folder", help="the run's folder")
    options = parser.parse_args(arguments)

    from pipeline.report.compare import read_run
    from pipeline.report.csv_table import csv_of
    from pipeline.report.page import page_of

    run = read_run(options.folder)
    folder = Path(options.folder)
    folder = folder if folder.is_dir() else folder.parent
    for name, text in (("report.html", page_of(run.report)), ("report.csv", csv_of(run.report))):
        _write(folder / name, text)
        print(f"Written: {folder / name}")
    return 0


def compare(arguments: Sequence[str]) -> int:
    """Show runs beside each other; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="caffe-quant compare",
        description="Show accuracy of runs beside each other, and the layers that changed.",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="two runs or more")
    parser.add_argument("--page", metavar="FILE", help="write it as a page of HTML, too")
    options = parser.parse_args(arguments)
    if len(options.folders) < 2:
        parser.error("two runs are needed")

    from pipeline.report.compare import comparison_page, read_run, short_names, show_comparison
    from pipeline.report.console import PlainConsole
    from pipeline.report.tables import wide

    names = short_names(options.folders)
    runs = [read_run(f, name) for f, name in zip(options.folders, names, strict=True)]
    show_comparison(runs, wide(PlainConsole()))
    if options.page is not None:
        _write(Path(options.page), comparison_page(runs))
        print(f"Written: {options.page}")
    return 0


def _write(path: Path, text: str) -> None:
    from caffeio import atomic_write

    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")

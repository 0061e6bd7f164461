"""Tables that fit a terminal: columns that matter least leave first, no word is broken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

__all__ = ["Column", "decibels", "explain", "fitted_table", "plain_table", "shortened"]

#: Characters between two columns, and at both edges together.
_BETWEEN, _EDGES = 2, 2
#: A name is never cut shorter than this.
_LEAST = 12


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    name : str
    cells : sequence of str
    left : bool
        Text, not numbers.
    rank : int
        Columns of the highest rank leave first where there is no room; those of rank 0 stay.
    """

    name: str
    cells: Sequence[str]
    left: bool = False
    rank: int = 0

    @property
    def width(self) -> int:
        """Characters that it needs."""
        return max(map(cell_len, (self.name, *self.cells)))


def fitted_table(title: str, columns: Sequence[Column], width: int) -> Table:
    """Return a table of at most `width` characters, if its columns of rank 0 can be so narrow.

    Parameters
    ----------
    title : str
    columns : sequence of Column
        The first names the rows: its cells are cut in the middle where nothing else helps.
    width : int
    """
    shown = list(columns)
    while _needed(shown) > width and any(c.rank for c in shown):
        shown.remove(max(shown, key=lambda c: c.rank))
    room = max(_LEAST, width - _needed(shown) + shown[0].width)
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in shown:
        table.add_column(column.name, justify="left" if column.left else "right", no_wrap=True)
    first = [shortened(cell, room) for cell in shown[0].cells]
    for row in zip(first, *(c.cells for c in shown[1:]), strict=True):
        table.add_row(*row)
    return table


def _needed(columns: Sequence[Column]) -> int:
    return sum(c.width for c in columns) + _BETWEEN * (len(columns) - 1) + _EDGES


def shortened(text: str, room: int) -> str:
    """Return a text of at most `room` characters, the middle left out.

    Examples
    --------
    >>> shortened("inception_4a/3x3_reduce", 15)
    'incepti…_reduce'
    """
    if cell_len(text) <= room:
        return text
    half = (room - 1) // 2
    return f"{text[: room - 1 - half]}…{text[len(text) - half :]}"


def decibels(value: float) -> str:
    """Return dB as text: nothing for NaN, "exact" for infinity."""
    if math.isnan(value):
        return ""
    return "exact" if math.isinf(value) and value > 0 else f"{value:.1f}"


def plain_table(title: str, *columns: str, left: int) -> Table:
    """Return an empty table; the first `left` columns are text."""
    table = fitted_table(title, [Column(name, (), i < left) for i, name in enumerate(columns)], 0)
    for column in table.columns:
        column.no_wrap = False
        column.overflow = "fold"
    return table


def explain(console: Console, *lines: str) -> None:
    """Print what a table's words mean."""
    for line in lines:
        console.print(line, style="italic dim", markup=False, highlight=False)
    console.print()

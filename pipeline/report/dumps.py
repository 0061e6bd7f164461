"""Numbers of another runtime held against ours, as values and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from pipeline.report.fit import plain_table

__all__ = ["Compared", "show_compared"]


@dataclass(frozen=True)
class Compared:
    """One array of a dump beside ours.

    Attributes
    ----------
    layer, type : str
    role : "input" or "output"
        What it is to the layer.
    file : str
        Within the dump.
    values : int
    differing : int
        How many differ by more than half a step: so many would be other integers.
    worst : float
        The largest difference, in steps.
    step : str
        What a step is here.
    """

    layer: str
    type: str
    role: str
    file: str
    values: int
    differing: int
    worst: float
    step: str


def show_compared(found: Sequence[Compared], console: Console) -> None:
    """Print the layer that differs first, then all that differ."""
    different = [c for c in found if c.differing]
    if not different:
        worst = max((c.worst for c in found), default=0.0)
        console.print(
            f"All {len(found)} arrays are equal: no value differs by more than half a step "
            f"(at most {worst:.3g}).",
            highlight=False,
        )
        return
    first = different[0]
    console.print(
        f"The first that differs is the {first.role} of layer '{first.layer}' ({first.type}): "
        f"{first.differing:,} of {first.values:,} values, by up to {first.worst:.3g} steps "
        f"({first.step}).",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    title = f"{len(different)} of {len(found)} arrays differ"
    table = plain_table(title, "layer", "type", "array", "differ", "of", "worst", "step", left=3)
    table.caption = "differ: by more than half a step; worst: in steps."
    table.caption_justify = "left"
    for c in different:
        numbers = (f"{c.differing:,}", f"{c.values:,}", f"{c.worst:.3g}")
        table.add_row(c.layer, c.type, c.role, *numbers, c.step)
    console.print(table)

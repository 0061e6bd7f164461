"""The data of a run as a table, and the warnings where they cannot be missed."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.layers import Shape
from pipeline.quantize.data_seen import DataSeen, InputSeen

__all__ = ["show_data", "show_notes", "show_warnings"]

#: Channels of an input that are shown; all are in report.json.
_CHANNELS = 4


def show_data(data: DataSeen, console: Console) -> None:
    """Print what the net was given, channel by channel, and which samples."""
    table = Table(
        title=f"Data: {len(data.names)} samples, {data.choice}",
        title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False,
        collapse_padding=True, caption_justify="left", caption=_caption(data),
    )  # fmt: skip
    table.add_column("input", overflow="fold")
    for name in ("size", "declared", "channel", "min", "max", "mean", "deviation"):
        table.add_column(name, justify="right")
    for seen in data.inputs:
        first = (
            seen.blob,
            _size(seen.shape),
            "" if seen.declared is None else _size(seen.declared),
        )
        for i, c in enumerate(seen.channels[:_CHANNELS]):
            numbers = (f"{v:.4g}" for v in (c.low, c.high, c.mean, c.deviation))
            table.add_row(*(first if i == 0 else ("", "", "")), _channel(i, seen), *numbers)
        if len(seen.channels) > _CHANNELS:
            table.add_row("", "", "", f"+{len(seen.channels) - _CHANNELS}")
    console.print(table)


def _channel(i: int, seen: InputSeen) -> str:
    return str(i) if len(seen.channels) > 1 else ""


def _caption(data: DataSeen) -> str:
    """Name the first sample and the last, by their places in the source."""
    if not data.places:
        return ""
    by_place = dict(zip(data.places, data.names, strict=True))
    ends = dict.fromkeys((min(by_place), max(by_place)))
    lines = [f"number {i}: {_last_parts(by_place[i])}" for i in ends]
    return "\n".join(["As the net sees it. First and last sample:", *lines])


def _last_parts(name: str) -> str:
    """Return the end of a path, which tells samples apart."""
    parts = name.replace("\\", "/").split("/")
    return "/".join(parts[-2:])


def _size(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "1"


def show_notes(notes: Iterable[str], console: Console) -> None:
    """Print notes, one after the other."""
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def show_warnings(warnings: Iterable[str], console: Console) -> None:
    """Print warnings; at the end of everything, where the eye is."""
    for warning in warnings:
        console.print(f"WARNING: {warning}", style="bold red", markup=False, highlight=False)

"""What was measured, as tables for the console or in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.contest import Result
from kernels.cpu.codegen.microkernels import choose

__all__ = ["Grid", "show", "summary", "times", "wrong"]

_UNITS = {"read": "GB/s", "float": "GOP/s", "int8": "GOP/s"}


@dataclass(frozen=True)
class Grid:
    """A table of text; the first column is a name, the others are numbers."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> Table:
        """Return it for the console."""
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE, pad_edge=False)
        for i, header in enumerate(self.headers):
            table.add_column(escape(header), justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def markdown(self) -> str:
        """Return it in Markdown."""
        lines = [f"**{self.title}**", "", _line(self.headers)]
        lines.append("|---|" + "---:|" * (len(self.headers) - 1))
        lines += map(_line, self.rows)
        return "\n".join((*lines, ""))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def show(console: Console, grids: Sequence[Grid], *, markdown: bool) -> None:
    """Print tables."""
    for grid in grids:
        if markdown:
            console.print(grid.markdown(), markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(grid.rich())


def _by_group(results: Sequence[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.workload.group, []).append(result)
    return groups


def times(results: Sequence[Result], limits: Mapping[str, float]) -> tuple[Grid, ...]:
    """Return a table of milliseconds for each group of workloads."""
    grids = []
    for group, members in _by_group(results).items():
        others = list(dict.fromkeys(n for r in members for n in r.race.seconds if n != r.first))
        unit = _UNITS.get(members[0].workload.bound)
        rates = (unit, "of limit") if unit else ()
        headers = (group, "ours ms", *rates, *others, "ours/fastest [quartiles]")
        rows = (_times(r, others, limits) for r in members)
        title = f"{group}, milliseconds{_set_of(members[0].workload.bound)}"
        grids.append(Grid(title, headers, tuple(rows)))
    return tuple(grids)


def _set_of(bound: str) -> str:
    """Return by which instruction set our side of a table computes."""
    return f", ours by {choose(bound).isa}" if bound in ("int8", "float") else ""


def _times(result: Result, others: Sequence[str], limits: Mapping[str, float]) -> tuple[str, ...]:
    workload, seconds = result.workload, result.race.median(result.first)
    cells = [f"{'* ' if result.disturbed else ''}{workload.name}", _cell(result, result.first)]
    if workload.bound in _UNITS:
        rate = workload.work / seconds
        limit = limits.get(workload.bound)
        cells += [f"{rate / 1e9:.1f}", f"{rate / limit:.0%}" if limit else ""]
    cells += [_cell(result, name) if name in result.race.seconds else "" for name in others]
    if result.ratio is None:
        return (*cells, "no peer")
    low, middle, high = result.ratio
    return (*cells, f"{middle:.2f} [{low:.2f}, {high:.2f}] {result.fastest}")


def _cell(result: Result, name: str) -> str:
    """Return a side's time, and its score if it is not exact."""
    score = result.workload.score
    share = result.scores.get(name, 0.0)
    note = f" ({_share(share)} {score.word})" if score and share else ""
    return f"{result.race.median(name) * 1e3:.3f}{note}"


def _share(value: float) -> str:
    return f"{value:.2g}%" if 0 < (value := 100 * value) < 10 else f"{value:.0f}%"


def wrong(results: Sequence[Result]) -> tuple[Grid, ...]:
    """Return a table of scores for each group of workloads that has one."""
    grids = []
    for group, members in _by_group([r for r in results if r.scores]).items():
        sides = list(dict.fromkeys(name for r in members for name in r.scores))
        score = members[0].workload.score
        word = score.word if score else ""
        rows = (
            (r.workload.name, *(_share(r.scores[s]) if s in r.scores else "" for s in sides))
            for r in members
        )
        grids.append(Grid(f"{group}, {word}", (group, *sides), tuple(rows)))
    return tuple(grids)


def summary(results: Sequence[Result]) -> Grid | None:
    """Return, for each kind of work, the geometric mean of ours/fastest and the worst."""
    kinds: dict[str, list[tuple[float, Result]]] = {}
    for result in results:
        if result.workload.kind and result.ratio:
            kinds.setdefault(result.workload.family, []).append((result.ratio[1], result))
    if not kinds:
        return None
    rows = []
    for name, pairs in kinds.items():
        ratios = [ratio for ratio, _ in pairs]
        worst, where = max(pairs, key=lambda pair: pair[0])
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        below = sum(ratio < 1 for ratio in ratios)
        rows.append(
            (
                name,
                f"{mean:.2f}",
                f"{below}",
                f"{len(ratios) - below}",
                f"{worst:.2f} {where.workload.name} ({where.fastest})",
            )
        )
    headers = ("kind", "geometric mean", "below 1", "above 1", "worst")
    return Grid("ours / fastest peer", headers, tuple(rows))

"""What is measured: a workload, and the sides that do its work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import peers

__all__ = ["OURS", "Check", "Mismatch", "Ready", "Run", "Score", "Side", "Workload", "compare"]
__all__ += ["near", "prepare", "same_shape", "within"]

#: The peer's name of our own sides; the first side of a workload is always ours.
OURS = "ours"

#: One piece of work, all set up; it returns what it computed.
Run = Callable[[], Any]

#: ``check(inputs, ours, its)`` raises `Mismatch` where the results differ.
Check = Callable[[Any, Any, Any], None]


class Mismatch(AssertionError):
    """A side that must be right computed something else, so that timing it says nothing."""


@dataclass(frozen=True)
class Score:
    """How far a result lies from the truth, shown beside the time: 0 is exact.

    For work on which sides may differ: a side with a bad score is timed nevertheless.
    """

    word: str  # what the share is called
    of: Callable[[Any, Any], float | None]  # (inputs, result); None: not to be scored


@dataclass(frozen=True)
class Side:
    """One program that does the work; ``start(inputs, threads)`` sets it up."""

    peer: str  # OURS or a key of PEERS
    start: Callable[[Any, int], Run]
    same: Check | None = None  # must hold, or nothing is timed; ours is given to its own, too
    label: str = ""

    @property
    def name(self) -> str:
        """The name shown."""
        return self.label or self.peer


@dataclass(frozen=True)
class Workload:
    """One piece of work and all who do it, ours first; `inputs` makes the data they share."""

    group: str
    name: str
    inputs: Callable[[], Any]
    sides: tuple[Side, ...]
    work: float = 0.0  # bytes, or operations (a multiply-add is 2), of one run; 0: no measure
    bound: str = ""  # key of bench.limits.LIMITS: what the machine allows at most
    missing: Callable[[], str | None] = lambda: None  # why it cannot run here
    kind: str = ""  # workloads of a kind are summed up together
    short: bool = True  # part of the short list
    score: Score | None = None
    most_rounds: int = 1 << 30  # enough where one run takes seconds

    @property
    def title(self) -> str:
        """Group and name."""
        return f"{self.group}: {self.name}"

    @property
    def family(self) -> str:
        """Group and kind."""
        return self.group if self.kind in ("", self.group) else f"{self.group}, {self.kind}"


@dataclass(frozen=True)
class Ready:
    """A workload set up, with equal numbers, and the sides that cannot run here, and why."""

    runs: Mapping[str, Run]
    skipped: Mapping[str, str]


def prepare(workload: Workload, threads: int) -> Ready:
    """Set every side up in this process, run each once and compare the numbers."""
    inputs, runs, skipped = workload.inputs(), {}, {}
    ours = None
    for side in workload.sides:
        if side.peer != OURS and (reason := peers.missing(side.peer)):
            skipped[side.name] = reason
            continue
        peers.set_threads(side.peer, threads)
        runs[side.name] = side.start(inputs, threads)
        result = runs[side.name]()
        ours = result if ours is None else ours
        compare(workload, side, inputs, ours, result)
    return Ready(runs, skipped)


def compare(workload: Workload, side: Side, inputs: Any, ours: Any, its: Any) -> None:
    """Raise `Mismatch`, naming workload and side, if its numbers are not ours."""
    try:
        if side.same is not None:
            side.same(inputs, ours, its)
    except Mismatch as error:
        raise Mismatch(f"{workload.title}: {side.name} differs: {error}") from error


def same_shape(ours: np.ndarray, its: np.ndarray) -> None:
    """Raise `Mismatch` if the shapes differ."""
    if ours.shape != its.shape:
        raise Mismatch(f"shape {its.shape}, ours {ours.shape}")


def within(step: float, share: float) -> Check:
    """Return a check: no value off by more than `step`, at most `share` of them off at all."""

    def same(_inputs: Any, ours: np.ndarray, its: np.ndarray) -> None:
        same_shape(ours, its)
        error = np.abs(np.subtract(ours, its, dtype=np.float64))
        off = float((error > 0).mean())
        if not (error.max() <= step * (1 + 1e-5) and off <= share):
            raise Mismatch(f"{off:.2%} of the values, by {error.max():g} at most")

    return same


def near(relative: float) -> Check:
    """Return a check: errors within so much of the largest magnitude."""

    def same(_inputs: Any, ours: np.ndarray, its: np.ndarray) -> None:
        same_shape(ours, its)
        error = float(np.abs(ours - its).max() / np.abs(its).max())
        if not error <= relative:
            raise Mismatch(f"by {error:.1e} of the largest magnitude")

    return same

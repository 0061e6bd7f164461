"""One workload measured: every side set up, its numbers compared, then turns for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench.timing import Race, race
from bench.worker import Worker
from bench.workload import OURS, Workload, compare

__all__ = ["Result", "contest"]


@dataclass(frozen=True)
class Result:
    """What was measured of a workload, by the sides' names; sides that failed are in neither."""

    workload: Workload
    race: Race
    scores: Mapping[str, float]
    failed: tuple[str, ...] = ()
    disturbed: bool = field(default=False, compare=False)

    @property
    def first(self) -> str:
        """Our side."""
        return self.workload.sides[0].name

    @property
    def fastest(self) -> str | None:
        """The peer with the least median, right or wrong; None if there is no peer."""
        names = [
            s.name for s in self.workload.sides if s.peer != OURS and self.race.seconds.get(s.name)
        ]
        return min(names, key=self.race.median) if names else None

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """Our time over the fastest peer's: lower quartile, median, upper quartile."""
        return self.race.ratio(self.first, self.fastest) if self.fastest else None


def contest(workload: Workload, workers: Mapping[str, Worker], rounds: int) -> Result:
    """Set every side up, compare the numbers, then let them take turns.

    A peer that fails is left out. With no rounds nothing is timed.

    Raises
    ------
    Mismatch
        If a side that must be right is wrong.
    RuntimeError
        If our own side fails.
    """
    sides = [side for side in workload.sides if side.peer in workers]
    inputs = workload.inputs()
    results: dict[str, Any] = {}
    failed: list[str] = []
    for side in sides:
        try:
            results[side.name] = workers[side.peer].load(workload.title, side.name)
        except RuntimeError as error:
            if side.peer == OURS:
                raise
            failed.append(str(error))
            continue
        compare(workload, side, inputs, results[sides[0].name], results[side.name])
    scores = {}
    if workload.score:
        all_scores = {name: workload.score.of(inputs, result) for name, result in results.items()}
        scores = {name: score for name, score in all_scores.items() if score is not None}
    turns = {s.name: partial(workers[s.peer].turn, s.name) for s in sides if s.name in results}
    timed = race(turns, min(rounds, workload.most_rounds))
    return Result(workload, timed, scores, tuple(failed))

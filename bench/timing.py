"""Timing by turns: what disturbs the machine disturbs every side alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.workload import Run

__all__ = ["Race", "race", "turn"]

#: A turn lasts at least so long; its figure is the median of its calls.
_TURN_SECONDS = 0.03
#: Between turns: threads of the side before stop spinning.
_PAUSE_SECONDS = 0.005


@dataclass(frozen=True)
class Race:
    """Seconds of each side in each round, by the side's name."""

    seconds: Mapping[str, tuple[float, ...]]

    def median(self, side: str) -> float:
        """Return the median over the rounds."""
        return statistics.median(self.seconds[side])

    def ratio(self, side: str, peer: str) -> tuple[float, float, float]:
        """Return lower quartile, median and upper quartile of side / peer in the same round."""
        pairs = zip(self.seconds[side], self.seconds[peer], strict=True)
        ratios = [a / b for a, b in pairs]
        if len(ratios) < 2:
            return ratios[0], ratios[0], ratios[0]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, middle, high


def race(turns: Mapping[str, Callable[[], float]], rounds: int) -> Race:
    """Let all sides take turns, each of which returns its seconds; the first one rotates."""
    names = list(turns)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(_PAUSE_SECONDS)
            seconds[name].append(turns[name]())
    return Race({name: tuple(times) for name, times in seconds.items()})


def turn(run: Run) -> float:
    """Call a run for a while and return the median of its seconds."""
    run()  # brings its data and code back into the caches
    times: list[float] = []
    end = time.perf_counter() + _TURN_SECONDS
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)

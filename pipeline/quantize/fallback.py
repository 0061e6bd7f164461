"""Leaving the fewest layers in float that let a net reach its accuracy.

Layers are put in order: the one whose float form wins most for what it costs comes first. The
shortest beginning of that order that suffices is found by bisection; then layers of it are given
back to INT8, the costliest first, as long as the accuracy still suffices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["FallbackResult", "FallbackTrial", "fewest_in_float", "order_of"]


@dataclass(frozen=True)
class FallbackTrial:
    """One net that was measured.

    Attributes
    ----------
    what : str
    in_float : tuple of str
        Layers left in float.
    value : float
        Of the metric.
    reached : bool
    """

    what: str
    in_float: tuple[str, ...]
    value: float
    reached: bool


@dataclass(frozen=True)
class FallbackResult:
    """What the search found.

    Attributes
    ----------
    in_float : tuple of str
        Layers to leave in float.
    value : float
        Of the metric, with them.
    reached : bool
        Whether that suffices; if not, it is the best of all trials.
    trials : tuple of FallbackTrial
    """

    in_float: tuple[str, ...]
    value: float
    reached: bool
    trials: tuple[FallbackTrial, ...]


def order_of(noise: Mapping[str, float], costs: Mapping[str, float]) -> tuple[str, ...]:
    """Return layers, the one that makes most noise for its cost first.

    Parameters
    ----------
    noise : mapping of layer name to float
        Share of the signal, ``10 ** (-dB / 10)``.
    costs : mapping of layer name to float
        Of leaving a layer in float.
    """
    return tuple(sorted(noise, key=lambda name: -noise[name] / max(costs[name], 1e-30)))


def fewest_in_float(
    order: Sequence[str],
    costs: Mapping[str, float],
    measure: Callable[[frozenset[str]], float],
    target: float,
    *,
    take_back: bool = True,
) -> FallbackResult:
    """Search the cheapest set of layers whose float form lets a net reach a target.

    Parameters
    ----------
    order : sequence of str
        Layers that may be left in float, the most useful first.
    costs : mapping of str to float
    measure : callable
        ``measure(in_float) -> float``: the metric with these layers in float.
    target : float
        The metric must be at least this.
    take_back : bool
        Whether layers are given back to INT8 in the end.

    Returns
    -------
    FallbackResult

    Examples
    --------
    >>> wins = {"a": 3.0, "b": 2.0, "c": 1.0}
    >>> found = fewest_in_float(
    ...     "abc", {"a": 9, "b": 1, "c": 1}, lambda s: 90 + sum(wins[n] for n in s), 95
    ... )
    >>> found.in_float, found.value, len(found.trials)
    (('a', 'b'), 95.0, 6)
    """
    trials: list[FallbackTrial] = []

    def reaches(what: str, names: Sequence[str]) -> bool:
        value = measure(frozenset(names))
        trials.append(FallbackTrial(what, tuple(names), value, value >= target))
        return value >= target

    if reaches("all in INT8", ()):
        return _best(trials, costs)
    low, high = 0, len(order)  # `low` layers do not suffice
    if high and not reaches("all in float", order):
        return _best(trials, costs)
    while high - low > 1:
        middle = (low + high) // 2
        if reaches(f"the first {middle}", order[:middle]):
            high = middle
        else:
            low = middle
    chosen = list(order[:high])
    for name in sorted(chosen, key=lambda n: -costs[n]) if take_back and len(chosen) > 1 else ():
        fewer = [n for n in chosen if n != name]
        if reaches(f"without {name}", fewer):
            chosen = fewer
    return _best(trials, costs)


def _best(trials: Sequence[FallbackTrial], costs: Mapping[str, float]) -> FallbackResult:
    """Return the cheapest trial that suffices, or else the best one."""
    good = [t for t in trials if t.reached]
    if good:
        best = min(good, key=lambda t: (sum(costs[n] for n in t.in_float), len(t.in_float)))
    else:
        best = max(trials, key=lambda t: t.value)
    return FallbackResult(best.in_float, best.value, best.reached, tuple(trials))

"""Few levels for many weights: which of the 256 integers to keep, and what a code then needs.

Weights that take at most 16 or 32 of the int8 values compress well and stay int8 weights. The
levels of least squared error are found exactly: sorted values that share a level are neighbours,
so that the best partition of 256 values into n runs follows from those into n - 1 (Fisher, 1958;
Wang and Song, 2011). A run's level is the integer nearest to its mean.
"""

from __future__ import annotations

import numpy as np

from kernels.checks import Array, as_array, check_integer
from kernels.rounding import round_half_away

__all__ = ["best_levels", "entropy_bits", "level_table"]

_VALUES = 256


def best_levels(mass: Array, count: int) -> np.ndarray:
    """Return the integers that stand for int8 values with the least squared error.

    Parameters
    ----------
    mass : float64 array (256,)
        How much the values -128..127 weigh: how often they occur, or that times the square of
        their scale. Finite and not negative.
    count : int
        Levels, 1..256.

    Returns
    -------
    int8 array (n,)
        Ascending, at most `count`: fewer where there are not so many values.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or nothing weighs anything.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import best_levels
    >>> mass = np.zeros(256)
    >>> mass[[128 - 50, 128 - 48, 128, 128 + 60]] = 1, 1, 5, 2
    >>> best_levels(mass, 3)
    array([-49,   0,  60], dtype=int8)
    """
    check_integer("count", count, 1, _VALUES)
    mass = np.asarray(as_array("mass", mass), np.float64)
    if mass.shape != (_VALUES,) or not (np.isfinite(mass) & (mass >= 0)).all():
        raise ValueError(f"mass must be {_VALUES} finite numbers, not negative")
    if not mass.any():
        raise ValueError("mass is zero everywhere: there are no values to find levels for")
    values = np.flatnonzero(mass)
    if values.size <= count:
        return (values - 128).astype(np.int8)
    cost, level = _runs(values - 128.0, mass[values] / mass.max())
    best = cost[0]  # of the first j values in one run
    firsts = []
    for _ in range(1, count):
        # the last run begins at `first`: those before it are split as well as they can be
        total = np.concatenate([[np.inf], best[:-1]])[:, None] + cost
        firsts.append(total.argmin(axis=0))
        best = total.min(axis=0)
    levels, last = [], values.size - 1
    for first in reversed(firsts):
        begin = int(first[last])
        levels.append(level[begin, last])
        last = begin - 1
    levels.append(level[0, last])
    return np.unique(np.array(levels)).astype(np.int8)


def _runs(values: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return squared error and level of the run from each value to each later one, (V, V)."""
    ends = [np.concatenate([[0.0], np.cumsum(mass * values**k)]) for k in range(3)]
    weight, first, second = (e[None, 1:] - e[:-1, None] for e in ends)
    runs = np.triu(np.ones(weight.shape, bool))
    mean = np.divide(first, weight, out=np.zeros_like(first), where=runs)
    level = round_half_away(mean)
    cost = second - 2 * level * first + level**2 * weight
    return np.where(runs, np.maximum(cost, 0.0), np.inf), level


def level_table(levels: Array) -> np.ndarray:
    """Return the nearest level of each int8 value, the lower one of two.

    Parameters
    ----------
    levels : int8 array (n,)
        At least one.

    Returns
    -------
    int8 array (256,)
        Of the values -128..127.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import level_table
    >>> level_table(np.array([-4, 0, 8], np.int8))[128 - 3 : 128 + 6]
    array([-4, -4,  0,  0,  0,  0,  0,  0,  8], dtype=int8)
    """
    levels = np.unique(np.asarray(as_array("levels", levels), np.int8)).astype(np.int64)
    if not levels.size:
        raise ValueError("levels is empty")
    distance = np.abs(np.arange(-128, 128)[:, None] - levels)
    return levels[distance.argmin(axis=1)].astype(np.int8)


def entropy_bits(values: Array) -> float:
    """Return the bits that an ideal entropy code needs for int8 values, without its table.

    ``-sum over values of log2(how often it occurs / number of values)``; Huffman codes need at
    most a bit a value more, arithmetic codes come close.

    Parameters
    ----------
    values : int8 array

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import entropy_bits
    >>> entropy_bits(np.array([1, 1, 2, 3], np.int8))  # 1 + 1 + 2 + 2
    6.0
    """
    counts = np.bincount(np.asarray(as_array("values", values), np.int8).reshape(-1).view(np.uint8))
    counts = counts[counts > 0].astype(np.float64)
    return float(-(counts * np.log2(counts / max(counts.sum(), 1))).sum()) + 0.0

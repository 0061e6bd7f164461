"""The ways to choose a range, as settings: frozen, checked, with their defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kernels.checks import check_integer

__all__ = ["METHODS", "Hfmg", "Ifmr", "Kl", "Method", "MethodName", "MinMax", "Mse", "Percentile"]


#: More factors than this are a mistyped step: the search would seem to hang.
_MOST_CANDIDATES = 100_000


def _check_percentile(name: str, value: float) -> None:
    if not 0.5 < value <= 1.0:
        raise ValueError(f"{name} must be in (0.5, 1], not {value}")


@dataclass(frozen=True)
class Ifmr:
    """Shrink or stretch the upper end, keep what leaves the least squared error.

    Never changes: threads and forked processes may share it.

    Attributes
    ----------
    search_range : (float, float)
        First and last factor tried on the maximum, 0 < first < last.
    search_step : float
        0 < step <= last - first, and no more than 100,000 steps.
    max_percentile, min_percentile : float
        In (0.5, 1]: which value counts as the maximum, and as the minimum.
    asymmetric : bool
        Whether the data gets an offset.
    """

    search_range: tuple[float, float] = (0.7, 1.3)
    search_step: float = 0.01
    max_percentile: float = 0.999999
    min_percentile: float = 0.999999
    asymmetric: bool = True

    def __post_init__(self) -> None:
        start, end = self.search_range
        if not (0 < start < end < math.inf):
            raise ValueError(f"search_range must be 0 < start < end, not {self.search_range}")
        if not 0 < self.search_step <= (end - start) * (1 + 1e-6):  # 1 - 0.9 is below 0.1
            raise ValueError(f"search_step must be in (0, {end - start}], not {self.search_step}")
        if (end - start) / _MOST_CANDIDATES > self.search_step:
            raise ValueError(
                f"search_step {self.search_step} is too small: it makes more than "
                f"{_MOST_CANDIDATES} candidates between {start} and {end}"
            )
        _check_percentile("max_percentile", self.max_percentile)
        _check_percentile("min_percentile", self.min_percentile)


@dataclass(frozen=True)
class Hfmg:
    """Trim a histogram from both ends, keep the range of the least expected error.

    Never changes: threads and forked processes may share it.

    Attributes
    ----------
    num_of_bins : int
        1024, 2048, 4096 or 8192.
    asymmetric : bool
    """

    num_of_bins: int = 4096
    asymmetric: bool = True

    def __post_init__(self) -> None:
        check_integer("num_of_bins", self.num_of_bins, 1)
        if self.num_of_bins not in (1024, 2048, 4096, 8192):
            raise ValueError(
                f"num_of_bins must be 1024, 2048, 4096 or 8192, not {self.num_of_bins}"
            )


@dataclass(frozen=True)
class MinMax:
    """Take the whole range seen.

    Never changes: threads and forked processes may share it.
    """

    asymmetric: bool = True


@dataclass(frozen=True)
class Percentile:
    """Take the range between two percentiles, each in (0.5, 1].

    Never changes: threads and forked processes may share it.
    """

    max_percentile: float = 0.999999
    min_percentile: float = 0.999999
    asymmetric: bool = True

    def __post_init__(self) -> None:
        _check_percentile("max_percentile", self.max_percentile)
        _check_percentile("min_percentile", self.min_percentile)


@dataclass(frozen=True)
class Mse:
    """Try `steps` shares of either end, keep the pair of the least squared error.

    Never changes: threads and forked processes may share it.
    """

    steps: int = 100
    asymmetric: bool = True

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, 2)


@dataclass(frozen=True)
class Kl:
    """Try `steps` shares of the range, keep the one of the least Kullback-Leibler divergence.

    Never changes: threads and forked processes may share it.
    """

    steps: int = 100
    asymmetric: bool = True

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, 2)


Method = Ifmr | Hfmg | MinMax | Percentile | Mse | Kl

#: The names that users write.
MethodName = Literal["ifmr", "hfmg", "minmax", "percentile", "mse", "kl"]
METHODS: dict[str, type[Method]] = {
    "ifmr": Ifmr,
    "hfmg": Hfmg,
    "minmax": MinMax,
    "percentile": Percentile,
    "mse": Mse,
    "kl": Kl,
}

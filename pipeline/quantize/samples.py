"""Calibration samples in parts, of which some only judge: nothing is computed from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from caffeio import Net
from pipeline.runtime.batching import splits
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.schedule import schedule

__all__ = ["TOO_FEW_SAMPLES", "Samples", "samples_of"]

#: Samples that corrections are computed from, at most; a part holds so many.
_MOST_SAMPLES = 128
_PART = 8
#: The share of samples that is held back is one in so many.
_HELD = 5
#: Of so many batches that must stay whole, one is held back.
_FEW_BATCHES = 4

TOO_FEW_SAMPLES = (
    "too few calibration samples to hold some back: corrections are judged on those that "
    "they are computed from; give 10 or more (4 batches, where batches must stay whole)"
)
Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Samples:
    """Calibration samples in parts.

    Attributes
    ----------
    parts : tuple of dict of blob name to array
    held : tuple of bool
        Which of them only judge; if none does, all judge.
    """

    parts: tuple[Inputs, ...]
    held: tuple[bool, ...]

    @property
    def judges(self) -> tuple[Inputs, ...]:
        """The parts that judge."""
        judging = tuple(p for p, held in zip(self.parts, self.held, strict=True) if held)
        return judging or self.parts


def samples_of(net: Net, batches: Iterable[Inputs]) -> Samples:
    """Cut batches into parts, and hold a fifth back where there are enough.

    A net that does not treat every sample alone keeps its batches.

    Parameters
    ----------
    net : Net
    batches : iterable of dict of blob name to array
        No more are read than are used.
    """
    runner = FloatNet(net)
    taken: list[Inputs] = []
    count = 0
    for batch in batches:
        taken.append(batch)
        count += len(next(iter(batch.values())))
        if count >= _MOST_SAMPLES:
            break
    if not runner.remembers and _apart(runner, taken[0]):
        whole = {name: np.concatenate([b[name] for b in taken]) for name in taken[0]}
        count = min(count, _MOST_SAMPLES)
        kept = count - count // _HELD
        cuts = [*range(0, kept, _PART), *range(kept, count, _PART), count]
        pairs = [*pairwise(cuts)]
        parts = tuple({name: x[a:b] for name, x in whole.items()} for a, b in pairs)
        return Samples(parts, tuple(a >= kept for a, _ in pairs))
    held = max(len(taken) // _HELD, 1 if len(taken) >= _FEW_BATCHES else 0)
    kept = len(taken) - (0 if runner.remembers else held)
    return Samples(tuple(taken), tuple(i >= kept for i in range(len(taken))))


def _apart(runner: FloatNet, batch: Inputs) -> bool:
    net = runner.net
    shapes = runner.shapes({name: x.shape for name, x in batch.items()})
    return splits(net, schedule(net, batch, None, everything=True).layers, shapes)

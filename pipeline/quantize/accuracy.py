"""Scores held against labels, where the labels are classes of the net, and whether it is chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from caffeio.data import Batch
from pipeline.quantize.measure import TopK

__all__ = ["Accuracy", "near_chance"]

#: How sure one must be to say that a net does no better than chance, or that it would have shown.
_SURE = 0.01


@dataclass
class Accuracy:
    """Counts how often a net's scores put the label first, as long as the labels let it.

    Attributes
    ----------
    rank : TopK
    classes : int
        Scores of a sample; 0 before any.
    why_not : str
        Why there is no accuracy although there are labels; empty otherwise.
    """

    rank: TopK = field(default_factory=TopK)
    classes: int = 0
    why_not: str = ""
    _unlabelled: str = ""

    def update(self, outputs: Mapping[str, np.ndarray], batch: Batch) -> None:
        """Hold the last blob of one score a class against a batch's labels, if it has any."""
        if self.why_not:
            return
        scores = next((y for y in reversed([*outputs.values()]) if _ranks(y)), None)
        if batch.labels is None and not batch.unlabelled:
            self._unlabelled = self._unlabelled or batch.names[0]
        if batch.labels is not None or batch.unlabelled:
            self.why_not = self._problem(scores, batch)
        if self.why_not or batch.labels is None or scores is None:
            return
        self.classes = scores.shape[1]
        self.rank.update(scores, batch.labels)

    def _problem(self, scores: np.ndarray | None, batch: Batch) -> str:
        """Say why a batch's labels cannot be ranked; empty if they can."""
        labels = batch.labels
        if labels is None:
            return batch.unlabelled
        if labels.ndim != 1:
            return f"labels are arrays of the shape {labels.shape[1:]}, not one class a sample"
        if scores is None or len(scores) != len(labels):
            return "no output that is compared holds one score a class for each sample"
        classes = scores.shape[1]
        wrong = ~((labels >= 0) & (labels < classes) & (labels == np.floor(labels)))
        if wrong.any():
            bad = int(np.argmax(wrong))
            return (
                f"sample '{batch.names[bad]}' has label {labels[bad]:g}, but the net has "
                f"{classes} classes, 0 to {classes - 1}"
            )
        return ""

    def _measured(self) -> bool:
        return bool(self.rank.samples) and not self.reason

    @property
    def reason(self) -> str:
        """Why there is no accuracy although there are labels; empty otherwise."""
        if not self.why_not and self.rank.samples and self._unlabelled:
            return f"sample '{self._unlabelled}' has no label, but others have one"
        return self.why_not

    @property
    def top1(self) -> float | None:
        """Share of samples, in percent; None if it cannot be measured."""
        return self.rank.top1 if self._measured() else None

    @property
    def top5(self) -> float | None:
        """As `top1`, among the best five."""
        return self.rank.top5 if self._measured() else None


def _ranks(scores: np.ndarray) -> bool:
    """Whether an output holds one score for each of several classes: (N, classes[, 1, 1])."""
    return (
        scores.ndim >= 2 and scores.shape[1] >= 2 and scores.size == len(scores) * scores.shape[1]
    )


def near_chance(right: int, samples: int, classes: int) -> bool:
    """Whether a net does no better than one that guesses, on enough samples to say so.

    Guessing alone must reach `right` in more than 1 of 100 cases; and a net that is right on a
    third of what guessing misses must do better than that in 99 of 100.

    Parameters
    ----------
    right, samples : int
    classes : int
        2 or more.

    Examples
    --------
    >>> near_chance(0, 100, 1000), near_chance(3, 100, 1000)
    (True, False)
    >>> near_chance(0, 4, 1000)  # too few to say
    False
    """
    guess = 1 / classes
    if _at_least(right, samples, guess) <= _SURE:
        return False
    needed = next(k for k in range(samples + 2) if _at_least(k, samples, guess) <= _SURE)
    return _at_least(needed, samples, guess + (1 - guess) / 3) >= 1 - _SURE


def _at_least(right: int, samples: int, p: float) -> float:
    """Return the chance of so many successes or more."""
    whole = math.lgamma(samples + 1)
    logs = (
        whole - math.lgamma(k + 1) - math.lgamma(samples - k + 1)
        + k * math.log(p) + (samples - k) * math.log1p(-p)
        for k in range(right, samples + 1)
    )  # fmt: skip
    return min(math.fsum(map(math.exp, logs)), 1.0)

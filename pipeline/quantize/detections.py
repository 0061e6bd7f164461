"""How far two models' detections agree: boxes matched by overlap, since rows cannot be compared."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from pipeline.evaluators.overlap import overlaps

__all__ = ["Agreement", "DetectionScore"]

#: Least overlap (intersection over union) of a box and its match.
_LEVELS = 0.5, 0.75


@dataclass(frozen=True)
class DetectionScore:
    """How far a model's boxes agree with the float model's.

    Attributes
    ----------
    blob : str
    float_boxes, boxes : int
        Of the float model and of this one, in all samples.
    matched_50, matched_75 : float
        Share of both models' boxes, 0..1, that have a match of the same class in the other one
        with an overlap of at least 0.5 or 0.75; NaN where neither has boxes.
    score_error : float
        Mean difference of the scores of boxes matched at 0.5; NaN without any.
    """

    blob: str
    float_boxes: int
    boxes: int
    matched_50: float
    matched_75: float
    score_error: float


@dataclass
class Agreement:
    """Running counts of one blob.

    Rows are those of Caffe's DetectionOutput: image in the batch, label, score, xmin, ymin, xmax,
    ymax. Without any box it gives a row for each image, whose label is -1.
    """

    float_boxes: int = 0
    boxes: int = 0
    matched: list[int] = field(default_factory=lambda: [0] * len(_LEVELS))
    errors: list[float] = field(default_factory=list)

    def update(self, exact: np.ndarray, other: np.ndarray) -> None:
        """Add a batch: two arrays of seven values a box, of any numbers of boxes."""
        a, b = _boxes(exact), _boxes(other)
        self.float_boxes += len(a)
        self.boxes += len(b)
        for kind in np.unique(a[:, :2], axis=0):
            own, found = (x[(x[:, :2] == kind).all(axis=1)] for x in (a, b))
            shared = overlaps(own[:, 3:], found[:, 3:])
            for level, least in enumerate(_LEVELS):
                pairs = _pairs(shared, own[:, 2], least)
                self.matched[level] += len(pairs)
                if level == 0:
                    self.errors += [abs(float(own[i, 2] - found[j, 2])) for i, j in pairs]

    def score(self, blob: str) -> DetectionScore:
        """Return what was found so far."""
        total = self.float_boxes + self.boxes
        shares = [2 * m / total if total else math.nan for m in self.matched]
        error = math.fsum(self.errors) / len(self.errors) if self.errors else math.nan
        return DetectionScore(blob, self.float_boxes, self.boxes, shares[0], shares[1], error)


def _boxes(rows: np.ndarray) -> np.ndarray:
    """Return detections as (N, 7), without the rows that stand for none."""
    rows = np.asarray(rows, np.float64).reshape(-1, 7)
    return rows[rows[:, 1] >= 0]


def _pairs(shared: np.ndarray, scores: np.ndarray, least: float) -> list[tuple[int, int]]:
    """Match boxes one to one, those of high scores first, each to the one it overlaps most."""
    free = shared >= least
    pairs = []
    for i in np.argsort(-scores, kind="stable"):
        if free[i].any():
            j = int(np.argmax(np.where(free[i], shared[i], -1)))
            pairs.append((int(i), j))
            free[:, j] = False
    return pairs

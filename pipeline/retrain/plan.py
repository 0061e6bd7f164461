"""What a training goes by: what it keeps and where, how it is tested, which test was best."""

from __future__ import annotations

import glob
import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.retrain.feed import TrainingFeed
from pipeline.retrain.module import CaffeModule

__all__ = ["Best", "Interrupted", "Plan", "Test"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the training has stopped after a whole iteration, and is kept."""


@dataclass(frozen=True)
class Plan:
    """How long to train and what to keep.

    Attributes
    ----------
    snapshots : Path
        The file of the last snapshot; the best one lies beside it.
    made_of : dict of str to str
        From `fingerprint`.
    interval : int
        Iterations between snapshots. Beside each lie weights and state as Caffe has them.
    patience : int or None
        Tests without a better metric after which to stop.
    """

    snapshots: Path
    made_of: dict[str, str]
    interval: int
    patience: int | None = None

    @property
    def best(self) -> Path:
        """The file of the best state."""
        return self.snapshots.with_name(self.snapshots.name.replace("snapshot", "best"))

    def for_caffe(self, iteration: int) -> tuple[Path, Path]:
        """Return the files of weights and solver state beside the snapshot of an iteration."""
        stem = f"{self.snapshots.stem}_iter_{iteration}"
        names = (f"{stem}.caffemodel", f"{stem}.solverstate")
        return self.snapshots.with_name(names[0]), self.snapshots.with_name(names[1])

    def all_for_caffe(self) -> list[Path]:
        """Return such files of any iteration, and what a killed process has half written."""
        stem = glob.escape(f"{self.snapshots.stem}_iter_")
        folder = self.snapshots.parent
        return [*folder.glob(f"{stem}*"), *folder.glob(f".{stem}*.tmp")]


@dataclass(frozen=True)
class Test:
    """How a training is tested.

    Attributes
    ----------
    module : CaffeModule
        The net of phase TEST, on the blobs of the one that is trained.
    feed : TrainingFeed
    batches : int
        Of one test.
    interval : int
        Iterations between tests.
    first : bool
        Test before the first iteration.
    metric : str
        The output to judge by.
    rising : bool
        Whether more of it is better.
    """

    module: CaffeModule
    feed: TrainingFeed
    batches: int
    interval: int
    first: bool
    metric: str
    rising: bool


@dataclass(frozen=True)
class Best:
    """The best test so far.

    Attributes
    ----------
    metric : float
        NaN before the first test.
    iteration : int
        -1 before the first test.
    tests_since : int
    """

    metric: float = math.nan
    iteration: int = -1
    tests_since: int = 0

"""What an evaluator is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from caffeio.data import Batch
from pipeline.errors import PipelineError
from pipeline.python_file import place_in

__all__ = ["Evaluator", "Guarded"]


class Evaluator(Protocol):
    """Measures one model: it sees all batches, then says what it found."""

    def update(self, outputs: Mapping[str, np.ndarray], batch: Batch) -> None:
        """Take in a batch.

        Parameters
        ----------
        outputs : mapping of blob name to float32 array
            The blobs compared and those with detections, batch first.
        batch : Batch
            ``batch.names`` and ``batch.labels`` say which samples they belong to.
        """
        ...  # pragma: no cover

    def result(self) -> Mapping[str, float]:
        """Return the metrics by name; more is better, for `[fallback]`."""
        ...  # pragma: no cover


class Guarded:
    """An evaluator whose failure does not lose the run: it is said instead.

    Parameters
    ----------
    evaluator : Evaluator
    where : Path or None
        The user's file, whose line is named.

    Attributes
    ----------
    problem : str
        What went wrong; empty if nothing did.
    """

    def __init__(self, evaluator: Evaluator, where: Path | None = None) -> None:
        self._evaluator, self._where = evaluator, where
        self.problem = ""

    def update(self, outputs: Mapping[str, np.ndarray], batch: Batch) -> None:
        """Take in a batch, unless one before has failed."""
        if self.problem:
            return
        try:
            self._evaluator.update(outputs, batch)
        except Exception as error:
            self._failed(error)

    def result(self) -> dict[str, float]:
        """Return the metrics; none if the evaluator has failed."""
        if self.problem:
            return {}
        try:
            return {str(key): float(value) for key, value in self._evaluator.result().items()}
        except Exception as error:
            self._failed(error)
            return {}

    def _failed(self, error: Exception) -> None:
        if isinstance(error, PipelineError) or self._where is None:
            self.problem = str(error)
        else:
            self.problem = place_in(self._where, error)

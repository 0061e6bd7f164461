"""Mean intersection over union of segmentation labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from caffeio.data import Batch
from pipeline.errors import PipelineError

__all__ = ["MeanIou"]


class MeanIou:
    """Mean over the classes of ``intersection / union`` of label and prediction, in percent.

    Parameters
    ----------
    ignore_label : int
        Pixels of this label count for nothing.

    Notes
    -----
    Labels are (N, H, W) or (N, 1, H, W) class numbers. The prediction is the last output of that
    height and width: the class of the largest score, or the number itself where it has one
    channel. Classes that neither has are left out; ``pixel_accuracy`` is the share of all pixels.
    """

    def __init__(self, ignore_label: int = 255) -> None:
        self._ignored = ignore_label
        self._counts = np.zeros((0, 0), np.int64)

    def update(self, outputs: Mapping[str, np.ndarray], batch: Batch) -> None:
        """Count pixels by true and by predicted class."""
        if batch.labels is None or batch.labels.ndim < 3:
            raise PipelineError("miou needs labels of shape (N, H, W): class numbers of pixels")
        labels = batch.labels.reshape(len(batch.labels), *batch.labels.shape[-2:]).astype(np.int64)
        fitting = [y for y in outputs.values() if y.ndim == 4 and y.shape[2:] == labels.shape[1:]]
        if not fitting:
            shapes = ", ".join(f"{blob} {y.shape}" for blob, y in outputs.items())
            raise PipelineError(f"no output has the labels' size {labels.shape[1:]}: {shapes}")
        scores = fitting[-1]
        found = scores.argmax(axis=1) if scores.shape[1] > 1 else scores[:, 0].astype(np.int64)
        counted = labels != self._ignored
        true, predicted = labels[counted], found[counted]
        if true.size and min(true.min(), predicted.min()) < 0:
            raise PipelineError("a class number is negative; set ignore_label to the one to skip")
        size = max(
            scores.shape[1] if scores.shape[1] > 1 else 0,
            int(true.max(initial=0)) + 1,
            int(predicted.max(initial=0)) + 1,
            len(self._counts),
        )
        grown = np.zeros((size, size), np.int64)
        grown[: len(self._counts), : len(self._counts)] = self._counts
        grown += np.bincount(true * size + predicted, minlength=size * size).reshape(size, size)
        self._counts = grown

    def result(self) -> dict[str, float]:
        """Return mIoU and pixel accuracy, in percent."""
        both = np.diag(self._counts)
        either = self._counts.sum(axis=0) + self._counts.sum(axis=1) - both
        there = either > 0
        total = self._counts.sum()
        if not total:
            return {"mIoU": float("nan"), "pixel_accuracy": float("nan")}
        return {
            "mIoU": 100 * float((both[there] / either[there]).mean()),
            "pixel_accuracy": 100 * float(both.sum() / total),
        }

"""Peak signal to noise ratio of images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from caffeio.data import Batch
from pipeline.errors import PipelineError

__all__ = ["Psnr"]


class Psnr:
    """Mean over the samples of ``10 log10(peak² / mean squared error)``, in dB.

    Parameters
    ----------
    peak : float
        The largest value that an image can have: 255, or 1 of images in [0, 1].
    border : int
        Pixels that do not count at each edge, as usual in super-resolution.

    Notes
    -----
    The samples' labels are the true images, (N, C, H, W); compared is the last output of that
    shape, cut to 0..peak. A sample that is exact counts as 100 dB.
    """

    def __init__(self, peak: float = 255.0, border: int = 0) -> None:
        if peak <= 0 or border < 0:
            raise PipelineError("psnr: peak must be positive, border not negative")
        self._peak, self._border = float(peak), border
        self._decibels: list[float] = []

    def update(self, outputs: Mapping[str, np.ndarray], batch: Batch) -> None:
        """Compare each image with its label."""
        labels = batch.labels
        fitting = [y for y in outputs.values() if labels is not None and y.shape == labels.shape]
        if labels is None or not fitting:
            shapes = ", ".join(f"{blob} {y.shape}" for blob, y in outputs.items())
            given = "none" if labels is None else f"those of shape {labels.shape}"
            raise PipelineError(f"psnr needs labels of an output's shape, not {given}: {shapes}")
        b = self._border
        for true, found in zip(labels, fitting[-1], strict=True):
            error = np.clip(found.astype(np.float64), 0, self._peak) - true
            error = error[..., b : error.shape[-2] - b, b : error.shape[-1] - b]
            noise = float(np.square(error).mean())
            decibels = 10 * np.log10(self._peak**2 / noise) if noise else 100.0
            self._decibels.append(float(min(decibels, 100.0)))

    def result(self) -> dict[str, float]:
        """Return the mean PSNR."""
        return {"PSNR": float(np.mean(self._decibels)) if self._decibels else float("nan")}

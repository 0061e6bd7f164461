"""How far quantized values are from float ones: SQNR, cosine, accuracy; all running sums."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Closeness", "TopK", "decibels", "mean_decibels"]

#: Values compared at a time: what is computed on the way takes tens of bytes for each.
_PART = 1 << 20


@dataclass
class Closeness:
    """Compares two streams of arrays.

    Attributes
    ----------
    signal, noise : float
        Sums of squares of the float values, and of the differences.
    cosines : list of float
        One for each sample.
    decibels : list of float
        SQNR of each sample; inf if equal.
    worst : float
        Largest absolute difference.
    """

    signal: float = 0.0
    noise: float = 0.0
    worst: float = 0.0
    cosines: list[float] = field(default_factory=list)
    decibels: list[float] = field(default_factory=list)

    def update(self, exact: np.ndarray, other: np.ndarray) -> None:
        """Add arrays (N, ...) of the same shape: float values, and what stands for them.

        One without axes counts as one sample.
        """
        pairs = [np.atleast_1d(x).reshape(len(np.atleast_1d(x)), -1) for x in (exact, other)]
        count = max(1, _PART // max(pairs[0].shape[1], 1))
        for i in range(0, len(pairs[0]), count):
            self._add(*(x[i : i + count].astype(np.float64) for x in pairs))

    def _add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Add some samples, float64 (N, values)."""
        difference = a - b
        signal = np.einsum("ij,ij->i", a, a)
        noise = np.einsum("ij,ij->i", difference, difference)
        self.signal += float(signal.sum())
        self.noise += float(noise.sum())
        self.decibels.extend(map(decibels, signal.tolist(), noise.tolist()))
        self.worst = max(self.worst, float(np.abs(difference).max(initial=0.0)))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        dots = np.einsum("ij,ij->i", a, b)
        # the cosine is 1 of two zero vectors, 0 of a zero vector and another
        alike = (~a.any(axis=1) & ~b.any(axis=1)).astype(np.float64)
        self.cosines.extend(np.where(norms > 0, dots / np.where(norms > 0, norms, 1), alike))

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise ratio of all samples together, in dB; inf if exact.

        ``10 log10(Σ signal / Σ noise)``: samples of large values count for more. NaN before any.
        """
        if not self.decibels:
            return math.nan
        return decibels(self.signal, self.noise)

    @property
    def sample_sqnr(self) -> float:
        """Mean of the samples' own SQNR, in dB; inf if all are exact, NaN before any.

        Each sample counts alike; this is what other tools report. Samples that are exact, or
        whose float values are all zero, have no finite SQNR and are left out.
        """
        finite = [d for d in self.decibels if math.isfinite(d)]
        if finite:
            return float(np.mean(finite))
        return max(self.decibels) if self.decibels else math.nan

    @property
    def cosine(self) -> float:
        """Mean cosine similarity of the samples; NaN before any."""
        return float(np.mean(self.cosines)) if self.cosines else math.nan


def decibels(signal: float, noise: float) -> float:
    """Return ``10 log10(signal / noise)``: inf without noise, else -inf without signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def mean_decibels(outputs: Iterable[float]) -> float:
    """Return the mean of the outputs' SQNR, in dB.

    Outputs that are exact, as those that no quantized layer reaches, say nothing of the others
    and are left out: inf only if all are exact, NaN of none.

    Examples
    --------
    >>> mean_decibels([30.0, 40.0, math.inf])
    35.0
    """
    values = list(outputs)
    finite = [v for v in values if math.isfinite(v)]
    if finite:
        return float(np.mean(finite))
    return min(values) if values else math.nan


@dataclass
class TopK:
    """Counts labels among the best 1 and 5 scores."""

    first: int = 0
    fifth: int = 0
    samples: int = 0

    def update(self, scores: np.ndarray, labels: np.ndarray) -> None:
        """Add scores (N, classes[, 1, 1]) and integer labels (N,).

        A label is among the best k if fewer than k classes score higher, or equal with a
        lower index.
        """
        scores = scores.reshape(len(scores), -1)
        labels = labels.reshape(-1).astype(np.int64)
        own = scores[np.arange(len(labels)), labels][:, None]
        index = np.arange(scores.shape[1])[None]
        ahead = ((scores > own) | ((scores == own) & (index < labels[:, None]))).sum(axis=1)
        self.first += int((ahead < 1).sum())
        self.fifth += int((ahead < 5).sum())
        self.samples += len(labels)

    @property
    def top1(self) -> float:
        """Share of samples, in percent."""
        return 100.0 * self.first / self.samples if self.samples else math.nan

    @property
    def top5(self) -> float:
        """Share of samples, in percent."""
        return 100.0 * self.fifth / self.samples if self.samples else math.nan

"""A convolution as two of lower rank: fewer multiplications for a small error of its output.

The weights, seen as a matrix M between a part of the input's axes (rows) and all others, are
replaced by the product of two thin matrices, which are two convolutions:

====================  =================  ==================  ==========================
form                  rows               first convolution   second
====================  =================  ==================  ==========================
``"rows, columns"``   channel, row       (R, I, kh, 1)       (O, R, 1, kw)
``"narrow, full"``    channel            (R, I, 1, 1)        (O, R, kh, kw)
``"full, narrow"``    channel, row, col  (R, I, kh, kw)      (O, R, 1, 1)
====================  =================  ==================  ==========================

What counts is the output, not the weight: with C the covariance of the input columns, the error is
``tr(D (W - W') C (W - W')' D)``, D weighing the output channels. For the last form the best W' of
rank R is the projection on the R first principal axes of the output (Zhang et al., 2015). For the
other two the covariance of the rows alone, averaged over the taps that are not among them, takes
the place of C (as in Jaderberg et al., 2014, who have the identity there); what comes of it is then
measured with C itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kernels.checks import Array, as_array, check_array

__all__ = ["FORMS", "LowRank", "decompositions", "output_error"]

FORMS = ("rows, columns", "narrow, full", "full, narrow")

#: Directions of the input with less than this share of the largest variance count as this much.
_FLOOR = 1e-6


@dataclass(frozen=True)
class LowRank:
    """Two convolutions whose first R channels between them are the best of rank R.

    Never changes: threads and forked processes may share it.

    Attributes
    ----------
    first : float64 array (N, I, ...)
    second : float64 array (O, N, ...)
    left : float64 array (N + 1,)
        Relative error that a rank leaves, from 0 to N, by the covariance of the rows: an
        estimate for the first two forms.
    """

    first: np.ndarray
    second: np.ndarray
    left: np.ndarray

    def cut(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights of both convolutions for a rank, float32."""
        first, second = self.first[:rank], self.second[:, :rank]
        # each channel between them is scaled so that both weights of it are of a size
        sizes = [
            np.sqrt((x**2).sum(axis=axes)) for x, axes in ((first, (1, 2, 3)), (second, (0, 2, 3)))
        ]
        factor = np.sqrt(np.divide(sizes[1], sizes[0], out=np.ones(rank), where=sizes[0] > 0))
        factor = np.where(factor > 0, factor, 1.0)
        return (
            (first * factor[:, None, None, None]).astype(np.float32),
            (second / factor[None, :, None, None]).astype(np.float32),
        )

    def product(self, rank: int) -> np.ndarray:
        """Return the weights that both stand for together, float64 (O, I, kh, kw)."""
        first, second = self.first[:rank], self.second[:, :rank]
        # of each axis of the kernel one of the two has length 1
        return np.einsum("riyx,orYX->oiyYxX", first, second).reshape(
            len(second), first.shape[1], first.shape[2] * second.shape[2], -1
        )


def decompositions(
    w: Array, covariance: Array, weight: Array | None = None
) -> Mapping[str, LowRank]:
    """Return the low-rank forms of a convolution that make sense for its kernel.

    Parameters
    ----------
    w : float32 array (O, I, kh, kw)
        Of one group.
    covariance : float64 array (K, K)
        Of the columns that the weights meet: K counts channels, then rows, then columns.
    weight : float64 array (O,), optional
        How much an error of each output channel weighs; by default all alike.

    Returns
    -------
    dict of form to LowRank
        A 1x1 kernel has ``"full, narrow"`` alone.

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit.
    """
    w = check_array("w", w, np.float32, 4, "cpu")
    outs, ins, kh, kw = w.shape
    size = ins * kh * kw
    covariance = np.asarray(as_array("covariance", covariance), np.float64)
    if covariance.shape != (size, size):
        raise ValueError(f"covariance must be ({size}, {size}), not {covariance.shape}")
    d = np.ones(outs) if weight is None else np.asarray(as_array("weight", weight), np.float64)
    if d.shape != (outs,) or not (np.isfinite(d) & (d > 0)).all():
        raise ValueError(f"weight must be {outs} positive finite numbers")
    wide = w.astype(np.float64)
    found = {"full, narrow": _by_outputs(wide, covariance, d)}
    if kh * kw > 1:
        c = covariance.reshape(ins, kh, kw, ins, kh, kw)
        channels = np.einsum("iyxjyx->ij", c) / (kh * kw)
        first, second, left = _by_rows(wide.transpose(1, 0, 2, 3).reshape(ins, -1), channels,
                                       np.repeat(d, kh * kw))  # fmt: skip
        found["narrow, full"] = LowRank(
            first.T[:, :, None, None],
            second.reshape(-1, outs, kh, kw).transpose(1, 0, 2, 3),
            left,
        )
    if kh > 1 and kw > 1:
        rows = (np.einsum("iyxjzx->iyjz", c) / kw).reshape(ins * kh, ins * kh)
        m = wide.transpose(1, 2, 0, 3).reshape(ins * kh, outs * kw)
        first, second, left = _by_rows(m, rows, np.repeat(d, kw))
        found["rows, columns"] = LowRank(
            first.T.reshape(-1, ins, kh, 1),
            second.reshape(-1, outs, 1, kw).transpose(1, 0, 2, 3),
            left,
        )
    return {form: found[form] for form in FORMS if form in found}


def _by_outputs(w: np.ndarray, covariance: np.ndarray, d: np.ndarray) -> LowRank:
    """Project on the principal axes of the weighted output."""
    outs = len(w)
    m = w.reshape(outs, -1)
    energy, axes = np.linalg.eigh(d[:, None] * (m @ covariance @ m.T) * d)
    energy, axes = np.maximum(energy[::-1], 0.0), axes[:, ::-1]
    first = (axes.T * d) @ m
    second = axes / d[:, None]
    return LowRank(first.reshape(outs, *w.shape[1:]), second[:, :, None, None], _left(energy))


def _by_rows(
    m: np.ndarray, gram: np.ndarray, d: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (rows, N) and (N, columns) whose product is `m`, the weightiest first, and errors."""
    variance, axes = np.linalg.eigh(gram)
    top = variance[-1] if variance[-1] > 0 else 1.0
    root = np.sqrt(np.maximum(variance, _FLOOR * top))
    whitened = (axes * root).T @ (m * d)
    u, s, _ = np.linalg.svd(whitened, full_matrices=False)
    first = (axes / root) @ u
    second = u.T @ ((axes * root).T @ m)
    return first, second, _left(s**2)


def _left(energy: np.ndarray) -> np.ndarray:
    """Return the relative error that is left with 0, 1, ... of the energies."""
    rest = np.concatenate([np.cumsum(energy[::-1])[::-1], [0.0]])
    return np.sqrt(rest / rest[0]) if rest[0] > 0 else np.zeros(rest.size)


def output_error(w: Array, other: Array, covariance: Array, weight: Array | None = None) -> float:
    """Return how far the output of other weights is, relative to how much the output varies.

    Parameters
    ----------
    w, other : array (O, I, kh, kw)
    covariance : float64 array (K, K)
        As for `decompositions`; a constant error is the bias's matter.
    weight : float64 array (O,), optional

    Returns
    -------
    float
        The square root of the ratio of both variances, summed over channels; 0 if equal.
    """
    w, other = (np.asarray(as_array(n, x), np.float64) for n, x in (("w", w), ("other", other)))
    covariance = np.asarray(as_array("covariance", covariance), np.float64)
    m = w.reshape(len(w), -1)
    d = np.ones(len(m)) if weight is None else np.asarray(as_array("weight", weight), np.float64)
    noise, signal = (
        float((((x * d[:, None]) @ covariance) * (x * d[:, None])).sum())
        for x in (m - other.reshape(m.shape), m)
    )
    if noise <= 0:
        return 0.0
    return float(np.sqrt(noise / signal)) if signal > 0 else float("inf")

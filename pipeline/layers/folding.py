"""BatchNorm and Scale as a factor and a term for each channel, and products that take them in.

With ``k = gamma / sqrt(var * share + eps)``: ``W' = W * k`` and
``b' = (b - mean * share) * k + beta``. `share` is one over BatchNorm's third blob, and 0 where
that is 0, which means mean = var = 0. All in float64, rounded once at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

__all__ = [
    "Affine",
    "batch_norm_affine",
    "scale_affine",
    "scaled_inputs",
    "scaled_outputs",
    "statistics_share",
]

Number = TypeVar("Number", float, np.float32, np.float64)


@dataclass(frozen=True)
class Affine:
    """``y = x * k + shift`` for each channel.

    Attributes
    ----------
    k, shift : float64 array (C,)
    """

    k: np.ndarray
    shift: np.ndarray

    def then(self, other: Affine) -> Affine:
        """Return the composition: this map, then the other."""
        return Affine(self.k * other.k, self.shift * other.k + other.shift)


def statistics_share(count: Number) -> Number:
    """Return what BatchNorm's stored sums are multiplied by, in the type of the third blob.

    Examples
    --------
    >>> statistics_share(4.0)
    0.25
    >>> statistics_share(0.0)
    0.0
    """
    return count if count == 0 else type(count)(1) / count


def batch_norm_affine(
    blobs: Sequence[np.ndarray], eps: float, scale: Sequence[np.ndarray] = ()
) -> Affine:
    """Return what BatchNorm does by its stored statistics, and a Scale layer behind it.

    Parameters
    ----------
    blobs : mean (C,), variance (C,), and what both are to be divided by (1,); with `scale_bias`
        also a scale and a term (C,) of its own
    eps : float
    scale : gamma (C,), and perhaps beta (C,), of a Scale layer

    Examples
    --------
    >>> mean, variance, count = np.array([6.0]), np.array([8.0]), np.array([2.0])
    >>> batch_norm_affine((mean, variance, count), 0.0)
    Affine(k=array([0.5]), shift=array([-1.5]))
    """
    mean, variance, count, *own = (b.astype(np.float64).reshape(-1) for b in blobs)
    share = statistics_share(float(count[0]))
    if own and scale:
        return batch_norm_affine(blobs, eps).then(scale_affine(scale))
    gamma, *beta = own or [b.astype(np.float64).reshape(-1) for b in scale] or [np.ones(1)]
    k = gamma / np.sqrt(variance * share + eps)
    return Affine(k, (beta[0] if beta else 0.0) - mean * share * k)


def scale_affine(blobs: Sequence[np.ndarray]) -> Affine:
    """Return what a Scale layer with one factor a channel does; blobs: gamma and perhaps beta."""
    k, *shift = (b.astype(np.float64).reshape(-1) for b in blobs)
    return Affine(k, shift[0] if shift else np.zeros(k.size))


def _by_group(values: np.ndarray, group: int, axes: int) -> np.ndarray:
    """Return values of a channel each, to be multiplied with (group, first, second, ...)."""
    return values.reshape(group, 1, -1, *(1,) * (axes - 2))


def scaled_outputs(
    w: np.ndarray, bias: np.ndarray | None, affine: Affine, *, deconv_group: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and bias, float32, of a product whose result an affine map follows.

    Parameters
    ----------
    w : array (O, ...)
        Of a deconvolution (C, O / group, ...).
    bias : array (O,) or None
    affine : Affine
        Of O channels.
    deconv_group : int
        The groups of a deconvolution; 0 for any other product.
    """
    w = w.astype(np.float64)
    if deconv_group:
        grouped = w.reshape(deconv_group, -1, *w.shape[1:])
        scaled = (grouped * _by_group(affine.k, deconv_group, w.ndim)).reshape(w.shape)
    else:
        scaled = w * affine.k.reshape(-1, *(1,) * (w.ndim - 1))
    start = np.zeros(affine.k.size) if bias is None else bias.astype(np.float64).reshape(-1)
    shifted = start * affine.k + affine.shift
    return np.ascontiguousarray(scaled, np.float32), shifted.astype(np.float32)


def scaled_inputs(
    w: np.ndarray, bias: np.ndarray | None, affine: Affine, group: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and bias, float32, of a convolution whose data an affine map makes.

    Exact where nothing is padded: a padded zero is one behind the map.

    Parameters
    ----------
    w : array (O, C / group, kh, kw)
    bias : array (O,) or None
    affine : Affine
        Of C channels.
    group : int
    """
    grouped = w.astype(np.float64).reshape(group, -1, *w.shape[1:])
    k, shift = (_by_group(v, group, w.ndim) for v in (affine.k, affine.shift))
    start = np.zeros(len(w)) if bias is None else bias.astype(np.float64).reshape(-1)
    added = (grouped * shift).sum(axis=tuple(range(2, grouped.ndim))).reshape(-1)
    scaled = np.ascontiguousarray((grouped * k).reshape(w.shape), np.float32)
    return scaled, (start + added).astype(np.float32)

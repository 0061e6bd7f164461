"""Weights of few values (non-uniform quantization): which a layer keeps, and what that saves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

import kernels
from pipeline.layers.int8 import INT8_TYPES, QuantizedLayer
from pipeline.quantize.fallback import FallbackResult

__all__ = ["LayerLevels", "NuqResult", "layer_levels", "levels_for", "on_levels"]


@dataclass(frozen=True)
class LayerLevels:
    """What few levels do to the size of a layer's weights.

    Attributes
    ----------
    layer : str
    levels : int
        Different values among its weights.
    weights : int
        How many they are, which is their size in bytes as int8.
    coded_before, coded : int
        Bytes that an ideal entropy code needs for them, rounded to nearest before and as they are
        now; for the levels themselves a byte each.
    """

    layer: str
    levels: int
    weights: int
    coded_before: int
    coded: int


@dataclass(frozen=True)
class NuqResult:
    """What `[nuq]` did.

    Attributes
    ----------
    layers : tuple of LayerLevels
        The layers whose weights take few values, and their sizes.
    search : FallbackResult or None
        What was tried to keep the accuracy; its ``in_float`` are the layers that keep all values.
    """

    layers: tuple[LayerLevels, ...]
    search: FallbackResult | None = None


def levels_for(numbers: QuantizedLayer, count: int) -> np.ndarray:
    """Return the at most `count` integers that stand for a layer's weights with the least error.

    The error is that of the real weights: an integer of a channel with a coarse scale weighs more.
    """
    assert numbers.weights is not None
    axis = INT8_TYPES[numbers.type].channel_axis
    rows = np.moveaxis(numbers.weights, axis, 0)
    rows = rows.reshape(rows.shape[0], -1)
    weight = np.broadcast_to(numbers.scale_w.astype(np.float64) ** 2, (len(rows),))
    mass = np.bincount(
        rows.reshape(-1).astype(np.int64) + 128, np.repeat(weight, rows.shape[1]), minlength=256
    )
    return kernels.best_levels(mass, count)


def on_levels(numbers: QuantizedLayer, levels: np.ndarray) -> QuantizedLayer:
    """Return a layer with the level nearest to each of its weights."""
    assert numbers.weights is not None
    table = kernels.level_table(levels)
    return replace(numbers, weights=table[numbers.weights.astype(np.int64) + 128])


def layer_levels(numbers: QuantizedLayer, plain: QuantizedLayer) -> LayerLevels:
    """Return what few levels do to a layer; `plain` is the same with all of them."""
    assert numbers.weights is not None
    assert plain.weights is not None
    return LayerLevels(
        numbers.name,
        np.unique(numbers.weights).size,
        numbers.weights.size,
        _coded(plain.weights),
        _coded(numbers.weights),
    )


def _coded(weights: np.ndarray) -> int:
    return int(-(-kernels.entropy_bits(weights) // 8)) + np.unique(weights).size

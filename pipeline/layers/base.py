"""How a Caffe layer type enters the executor: its shape rule and its computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from caffeio.graph import Layer

__all__ = ["Kept", "LayerType", "Shape"]

Shape = tuple[int, ...]

#: What a layer keeps from one forward pass to the next; nothing before the first.
Kept = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class LayerType:
    """What the executor knows of one layer type.

    Attributes
    ----------
    shapes : callable
        ``shapes(layer, bottom_shapes) -> tuple of Shape``: the shapes of the tops. It
        checks the layer's parameters and the shapes of its weights, and raises
        `caffeio.NetError` naming the layer.
    forward : callable
        ``forward(layer, bottoms, device) -> tuple of ndarray``: the tops, float32. It
        never changes its bottoms; it may return views of them.
    data_dependent : bool
        The values decide how many items a top holds (Filter, DetectionOutput). `shapes`
        then gives Caffe's own stand-in, and `forward` may differ from it in that one axis;
        the executor checks the layers behind it again, with the true shapes, as they run.
    resume : callable or None
        ``resume(layer, bottoms, kept) -> (tops, kept)``, of a type that remembers (LSTM, RNN):
        its computation after what it kept. `forward` begins anew.
    """

    shapes: Callable[[Layer, Sequence[Shape]], tuple[Shape, ...]]
    forward: Callable[[Layer, Sequence[np.ndarray], str], tuple[np.ndarray, ...]]
    data_dependent: bool = False
    resume: (
        Callable[[Layer, Sequence[np.ndarray], Kept], tuple[tuple[np.ndarray, ...], Kept]] | None
    ) = None

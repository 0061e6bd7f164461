"""Types that are not known here: carried along as they are, and what becomes of the rest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches

import numpy as np

from caffeio.graph import Layer
from pipeline.layers.base import LayerType, Shape, any_sign, never
from pipeline.layers.check import fail

__all__ = ["TYPE", "explanation", "statement"]

#: How alike two names are, of 1, for one to be a slip of the other.
_ALIKE = 0.87
_OUTSIDE = {
    "Python": "is code outside the model",
    "HDF5Output": "writes its bottoms to a file, which a pass here does not",
}
_CURES = (
    "give its computation in [model] layers, end the net before it by [model] outputs, "
    "or replace it by layers of Caffe"
)


def statement(layer: Layer) -> str:
    """Say why a layer's type cannot run."""
    return f"type '{layer.type}' {_OUTSIDE.get(layer.type, 'is not known')}"


def explanation(layer: Layer, known: Collection[str]) -> str:
    """Say why a layer's type cannot run, what it may have been meant to be, and the cures."""
    near = get_close_matches(layer.type, known, n=1, cutoff=_ALIKE)
    hint = f" (is '{near[0]}' meant?)" if near and len(layer.type) > 3 else ""
    return f"{statement(layer)}{hint}; {_CURES}"


def _no_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    fail(layer, explanation(layer, ()))


def _no_forward(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    fail(layer, explanation(layer, ()))


#: Of a layer that cannot run: it and what depends on it are left out of every pass.
TYPE = LayerType(_no_shapes, _no_forward, never, any_sign, computes=False)

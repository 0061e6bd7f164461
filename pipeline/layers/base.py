"""How a Caffe layer type enters the product: all that is known of it stands here.

Whoever needs to know something of a layer asks its type; nobody keeps a list of type names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf

import numpy as np

from caffeio.graph import Layer
from pipeline.layers.folding import Affine

__all__ = [
    "Factors",
    "Kept",
    "LayerType",
    "Shape",
    "Sign",
    "Step",
    "always",
    "any_sign",
    "keeps_factors",
    "keeps_sign",
    "never",
    "no_affine",
    "no_factors",
    "no_identity",
    "no_macs",
    "no_step",
    "not_negative",
    "takes_no_factors",
    "takes_nothing",
]

Shape = tuple[int, ...]

#: What a layer keeps from one forward pass to the next; nothing before the first.
Kept = tuple[np.ndarray, ...]


class Sign(Enum):
    """What a layer does to the sign of values."""

    ANY = "its tops may be negative"
    KEPT = "its tops are negative only where a bottom is"
    NOT_NEGATIVE = "its tops are never negative"


@dataclass(frozen=True)
class Step:
    """What a layer is in a compiled net.

    Attributes
    ----------
    kind : str
        ``"conv"``, ``"deconv"``, ``"inner"`` (products), ``"max"``, ``"average"`` (windows),
        ``"concat"`` (of channels), ``"add"`` (two values), ``"apply"`` (element by element),
        ``"map"`` (element by element, by the layer's own forward, in whatever order of axes), or
        ``"affine"`` (a factor and a term for each channel: taken in by a product, or run as the
        layer).
    slope : float32 array (C,) or None
        Of "apply": what negative values are multiplied by.
    clamp : (float, float) or None
        Of "apply": lowest and highest value.
    affine : Affine or None
        Of "affine".
    """

    kind: str
    slope: np.ndarray | None = None
    clamp: tuple[float, float] | None = None
    affine: Affine | None = None


@dataclass(frozen=True)
class Factors:
    """What becomes of a positive factor of each channel (axis 1): ``f(k * x) = k * f(x)``.

    Attributes
    ----------
    kind : str
        ``"none"``: it does not hold; ``"kept"``: it holds, and all bottoms and tops have the same
        channels; ``"joined"``: it holds, and the top has the channels of the bottoms one after
        the other; ``"cut"``: the tops have the channels of the bottom.
    low, high : float
        It holds for values within these bounds: 0 and 6 for ReLU6. A bound of 0 is none.
    """

    kind: str = "none"
    low: float = -inf
    high: float = inf


def always(layer: Layer, rank: int) -> bool:
    """Say that a layer treats every image of a batch alone."""
    return True


def never(layer: Layer, rank: int) -> bool:
    """Say that a layer mixes the images of a batch, or has none."""
    return False


def any_sign(layer: Layer) -> Sign:
    """Say nothing of the sign of values."""
    return Sign.ANY


def keeps_sign(layer: Layer) -> Sign:
    """Say that tops are negative only where a bottom is."""
    return Sign.KEPT


def not_negative(layer: Layer) -> Sign:
    """Say that tops are never negative."""
    return Sign.NOT_NEGATIVE


def no_identity(layer: Layer) -> bool:
    """Say that a layer's tops are not its bottom."""
    return False


def no_affine(layer: Layer) -> Affine | None:
    """Say that a layer is not a factor and a term for each channel that could be folded."""
    return None


def no_macs(layer: Layer, bottom: Shape, top: Shape) -> int:
    """Say that a layer multiplies and adds nothing worth counting."""
    return 0


def no_step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step | None:
    """Say that a layer runs as it is in a compiled net."""
    return None


def no_factors(layer: Layer, rank: int) -> Factors:
    """Say that a factor of a channel does not pass through a layer."""
    return Factors()


def keeps_factors(layer: Layer, rank: int) -> Factors:
    """Say that a factor of a channel passes through a layer as it is."""
    return Factors("kept")


def takes_no_factors(layer: Layer, k: np.ndarray) -> Layer | None:
    """Say that no factor of an input channel is taken into a layer's weights."""
    return None


def takes_nothing(layer: Layer, affine: Affine) -> Layer | None:
    """Say that nothing is folded into a layer."""
    return None


@dataclass(frozen=True)
class LayerType:
    """What is known of one layer type.

    Attributes
    ----------
    shapes : callable
        ``shapes(layer, bottom_shapes) -> tuple of Shape``: the shapes of the tops. It
        checks the layer's parameters and the shapes of its weights, and raises
        `caffeio.NetError` naming the layer.
    forward : callable
        ``forward(layer, bottoms, device) -> tuple of ndarray``: the tops, float32. It
        never changes its bottoms; it may return views of them.
    per_image : callable
        ``per_image(layer, rank) -> bool``: whether it treats every image alone, the first axis
        of all its bottoms and tops being the images; `rank` is that of its first bottom.
    sign : callable
        ``sign(layer) -> Sign``.
    macs : callable
        ``macs(layer, bottom, top) -> int``: multiplications with additions; for AVE
        pooling additions.
    step : callable
        ``step(layer, bottom_shapes, top_shape) -> Step or None``: what it is in a compiled net,
        for one top and bottoms of two or four axes; None: it runs as it is.
    identity : callable
        ``identity(layer) -> bool``: its tops are its bottom, at inference.
    affine : callable
        ``affine(layer) -> Affine or None``: the factor and the term of each channel that it is
        by itself, at inference, and that the product beside it may take in. BatchNorm of three
        blobs is folded with the Scale behind it.
    like : str
        The type whose form on a device or in PyTorch it shares; a fork's other name for it.
    loss : bool
        Its first top is a loss, of weight 1 unless the layer says otherwise.
    measures : bool
        Its tops are scores of its first bottom, not an output of the net's own.
    saturates : bool
        Its top hides errors that its bottom shows.
    data_dependent : bool
        The values decide how many items a top holds (Filter, DetectionOutput). `shapes`
        then gives Caffe's own stand-in, and `forward` may differ from it in that one axis;
        the executor checks the layers behind it again, with the true shapes, as they run.
    resume : callable or None
        ``resume(layer, bottoms, kept) -> (tops, kept)``, of a type that remembers (LSTM, RNN):
        its computation after what it kept. `forward` begins anew.
    takes_behind, takes_before : callable
        ``takes_behind(layer, affine) -> Layer or None``: the layer with a map of its output
        channels (BatchNorm and Scale behind it) folded into its weights; of its input channels
        for `takes_before`. None if it cannot be.
    factors : callable
        ``factors(layer, rank) -> Factors``: whether a positive factor of a channel passes through.
    takes_factors : callable
        ``takes_factors(layer, k) -> Layer or None``: the layer with its input channels multiplied
        by k, float64 (C,), in its weights; None if it cannot be.
    folds_in_training : bool
        What is behind it is folded in quantization-aware training, too.
    computes : bool
        False: it cannot run here; it and what depends on it are left out of a pass.
    shape_only : bool
        Its tops follow from the shapes of its bottoms, whatever values these hold (PriorBox).
    detections : bool
        Its top holds a box a row: image, label, score, xmin, ymin, xmax, ymax.
    note : callable
        ``note(layer) -> str``: what a user should know of how a layer is set; mostly nothing.
    """

    shapes: Callable[[Layer, Sequence[Shape]], tuple[Shape, ...]]
    forward: Callable[[Layer, Sequence[np.ndarray], str], tuple[np.ndarray, ...]]
    per_image: Callable[[Layer, int], bool]
    sign: Callable[[Layer], Sign]
    macs: Callable[[Layer, Shape, Shape], int] = no_macs
    step: Callable[[Layer, Sequence[Shape], Shape], Step | None] = no_step
    identity: Callable[[Layer], bool] = no_identity
    affine: Callable[[Layer], Affine | None] = no_affine
    like: str = ""
    loss: bool = False
    measures: bool = False
    saturates: bool = False
    data_dependent: bool = False
    resume: (
        Callable[[Layer, Sequence[np.ndarray], Kept], tuple[tuple[np.ndarray, ...], Kept]] | None
    ) = None
    takes_behind: Callable[[Layer, Affine], Layer | None] = takes_nothing
    takes_before: Callable[[Layer, Affine], Layer | None] = takes_nothing
    factors: Callable[[Layer, int], Factors] = no_factors
    takes_factors: Callable[[Layer, np.ndarray], Layer | None] = takes_no_factors
    folds_in_training: bool = False
    computes: bool = True
    shape_only: bool = False
    detections: bool = False
    note: Callable[[Layer], str] = lambda layer: ""

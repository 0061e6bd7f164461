"""Checks that the shape rules of all layers share; each error names the layer and the cure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import NoReturn

import numpy as np

from caffeio.errors import NetError
from caffeio.graph import Layer
from caffeio.memory import no_room
from pipeline.layers.base import Shape

__all__ = [
    "arity",
    "axis_index",
    "blob",
    "check_room",
    "expect_blobs",
    "fail",
    "need",
    "rank",
    "same_shape",
]


def fail(layer: Layer, message: str) -> NoReturn:
    """Raise `NetError` for this layer."""
    raise NetError(message, layer.name)


def need(layer: Layer, condition: bool, message: str) -> None:
    """Raise `NetError` for this layer unless `condition` holds."""
    if not condition:
        fail(layer, message)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _between(low: int, high: int | None, noun: str) -> str:
    if high is None:
        return f"at least {_count(low, noun)}"
    return _count(low, noun) if low == high else f"{low} to {high} {noun}s"


def arity(
    layer: Layer,
    shapes: Sequence[Shape],
    bottoms: tuple[int, int | None] = (1, 1),
    tops: tuple[int, int | None] = (1, 1),
) -> None:
    """Check how many bottoms and tops a layer has; each limit is (least, most or None)."""
    for noun, names, (low, high), n in (
        ("bottom", layer.bottoms, bottoms, len(shapes)),
        ("top", layer.tops, tops, len(layer.tops)),
    ):
        if n < low or (high is not None and n > high):
            listed = f" ({', '.join(names)})" if names else ""
            fail(layer, f"a {layer.type} layer needs {_between(low, high, noun)}, has {n}{listed}")


def axis_index(layer: Layer, axis: int, ndim: int, name: str = "axis", extra: int = 0) -> int:
    """Return an axis counted from the front; negative ones count from the back.

    `extra` is 1 where the place behind the last axis is allowed too.
    """
    if not -ndim <= axis < ndim + extra:
        fail(layer, f"{name} {axis} is out of range: the bottom has {ndim} axes")
    return axis + ndim if axis < 0 else axis


def rank(layer: Layer, shape: Shape, ndim: int, index: int = 0) -> None:
    """Check the number of axes of one bottom."""
    if len(shape) != ndim:
        fail(
            layer,
            f"bottom '{layer.bottoms[index]}' has shape {shape}; "
            f"a {layer.type} layer needs {ndim} axes",
        )


def same_shape(layer: Layer, shapes: Sequence[Shape]) -> None:
    """Check that all bottoms have the shape of the first."""
    for name, shape in zip(layer.bottoms[1:], shapes[1:], strict=True):
        if shape != shapes[0]:
            fail(
                layer,
                f"bottom '{name}' has shape {shape}, bottom '{layer.bottoms[0]}' "
                f"{shapes[0]}; they must be equal",
            )


def _fits(have: Shape, want: Shape) -> bool:
    """Whether a blob's shape is the wanted one, or its legacy form with ones in front.

    A single value has many spellings: (), (1,), (1, 1, 1, 1).
    """
    legacy = len(have) == 4 > len(want) and have == (1,) * (4 - len(want)) + want
    return have == want or legacy or prod(have) == prod(want) == 1


def expect_blobs(layer: Layer, **blob_shapes: Shape) -> None:
    """Check number and shapes of a layer's weights, given by name in Caffe's order.

    Caffe's legacy form, four axes with ones in front, is accepted; `blob` undoes it.
    """
    listed = ", ".join(f"{name} {shape}" for name, shape in blob_shapes.items())
    if len(layer.blobs) != len(blob_shapes):
        cure = "; give the caffemodel that holds them" if not layer.blobs else ""
        fail(
            layer,
            f"needs {_count(len(blob_shapes), 'weight blob')} ({listed}), "
            f"has {len(layer.blobs)}{cure}"
            if blob_shapes
            else f"has {_count(len(layer.blobs), 'weight blob')}, needs none",
        )
    for have, (name, want) in zip(layer.blobs, blob_shapes.items(), strict=True):
        if not _fits(have.shape, want):
            fail(
                layer,
                f"{name} has shape {have.shape}, needs {want}: "
                "weights and prototxt do not belong together",
            )


def blob(layer: Layer, index: int, shape: Shape | None = None) -> np.ndarray:
    """Return one weight blob in the shape asked for, or flat without one."""
    data = layer.blobs[index]
    target_shape = (data.size,) if shape is None else shape
    return data.reshape(target_shape) if prod(target_shape) == data.size else data


def check_room(layer: Layer, shapes: Iterable[Shape]) -> None:
    """Raise if what a layer makes, float32, is more than the machine's memory.

    Raises
    ------
    caffeio.NetError
        With the shapes and the number of bytes.
    """
    shapes = list(shapes)
    if needed := no_room(4 * sum(prod(shape) for shape in shapes)):
        made = " and ".join("×".join(map(str, shape)) for shape in shapes)
        fail(layer, f"makes {made} values, which take {needed}")

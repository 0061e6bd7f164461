"""Layers that move, select and count values without weights: Concat, Slice, Reshape and kin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

import numpy as np

from caffeio.graph import Layer
from pipeline.layers.base import (
    Factors,
    LayerType,
    Shape,
    Step,
    always,
    keeps_factors,
    keeps_sign,
)
from pipeline.layers.check import arity, axis_index, fail, need

__all__ = ["TYPES", "concat_axis", "crop_offsets", "permute_order", "slice_cuts"]

ShapeRule = Callable[[Layer, Sequence[Shape]], tuple[Shape, ...]]


def concat_axis(layer: Layer, legacy: str, ndim: int) -> int:
    """Return the axis of Concat or Slice, which may be given by its legacy name."""
    p = layer.param.concat_param if layer.type == "Concat" else layer.param.slice_param
    if not p.HasField(legacy):
        return axis_index(layer, p.axis, ndim)
    need(layer, not p.HasField("axis"), f"give axis or {legacy} (its old name), not both")
    return axis_index(layer, getattr(p, legacy), ndim, legacy)


def _concat_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(1, None))
    first = shapes[0]
    axis = concat_axis(layer, "concat_dim", len(first))
    for name, shape in zip(layer.bottoms, shapes, strict=True):
        if shape[:axis] + shape[axis + 1 :] != first[:axis] + first[axis + 1 :] or len(
            shape
        ) != len(first):
            fail(
                layer,
                f"bottom '{name}' has shape {shape}, bottom '{layer.bottoms[0]}' {first}; "
                f"they may differ in axis {axis} only",
            )
    return ((*first[:axis], sum(s[axis] for s in shapes), *first[axis + 1 :]),)


def _concat(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    axis = concat_axis(layer, "concat_dim", bottoms[0].ndim)
    return (np.concatenate(bottoms, axis=axis),)


def slice_cuts(layer: Layer, axis: int, size: int) -> list[int]:
    """Return where a Slice layer cuts: the start of each top, and the end of the last."""
    points, tops = list(layer.param.slice_param.slice_point), len(layer.tops)
    if points:
        need(
            layer,
            len(points) == tops - 1,
            f"{tops} tops need {tops - 1} slice_point, not {len(points)}",
        )
        cuts = [0, *points, size]
        need(
            layer,
            all(a < b for a, b in pairwise(cuts)),
            f"slice_point {points} must rise from above 0 to below {size}, the size of axis {axis}",
        )
        return cuts
    need(
        layer,
        size % tops == 0,
        f"{tops} tops do not divide axis {axis} of size {size}; give slice_point",
    )
    return list(range(0, size + 1, size // tops)) if size else [0] * (tops + 1)


def _slice_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, tops=(1, None))
    x = shapes[0]
    axis = concat_axis(layer, "slice_dim", len(x))
    cuts = slice_cuts(layer, axis, x[axis])
    return tuple((*x[:axis], b - a, *x[axis + 1 :]) for a, b in pairwise(cuts))


def _slice(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    x = bottoms[0]
    axis = concat_axis(layer, "slice_dim", x.ndim)
    return tuple(np.split(x, slice_cuts(layer, axis, x.shape[axis])[1:-1], axis=axis))


def _split_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, tops=(1, None))
    return (shapes[0],) * len(layer.tops)


def _split(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    return (bottoms[0],) * len(layer.tops)


def _silence_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(1, None), tops=(0, 0))
    return ()


def _silence(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    return ()


def _flatten_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    x, p = shapes[0], layer.param.flatten_param
    start = axis_index(layer, p.axis, len(x))
    end = axis_index(layer, p.end_axis, len(x), "end_axis")
    need(layer, start <= end, f"axis {p.axis} lies behind end_axis {p.end_axis}")
    return ((*x[:start], prod(x[start : end + 1]), *x[end + 1 :]),)


def _reshape_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    x, p = shapes[0], layer.param.reshape_param
    start = p.axis if p.axis >= 0 else len(x) + p.axis + 1
    need(
        layer, 0 <= start <= len(x), f"axis {p.axis} is out of range: the bottom has {len(x)} axes"
    )
    need(layer, p.num_axes >= -1, f"num_axes {p.num_axes} must be at least -1")
    end = len(x) if p.num_axes == -1 else start + p.num_axes
    need(
        layer,
        end <= len(x),
        f"axis {p.axis} and num_axes {p.num_axes} reach beyond the {len(x)} axes of the bottom",
    )
    dims = list(p.shape.dim)
    need(
        layer,
        dims.count(-1) <= 1 and min(dims, default=0) >= -1,
        f"shape {dims} may hold one -1, and nothing below it",
    )
    for i, dim in enumerate(dims):
        if dim == 0:
            need(
                layer,
                start + i < len(x),
                f"shape {dims} copies axis {start + i} (dim: 0), but the bottom has {len(x)} axes",
            )
            dims[i] = x[start + i]
    outer_size = prod(x[:start]) * prod(x[end:])
    if -1 in dims:
        known_size = outer_size * -prod(dims)
        need(
            layer,
            known_size > 0 and prod(x) % known_size == 0,
            f"a bottom of shape {x} does not divide into {dims}",
        )
        dims[dims.index(-1)] = prod(x) // known_size
    top = (*x[:start], *dims, *x[end:])
    need(
        layer,
        prod(top) == prod(x),
        f"cannot reshape {x} ({prod(x)} values) to {top} ({prod(top)} values)",
    )
    return (top,)


def _reviewed(rule: ShapeRule, per_image: Callable[[Layer, int], bool]) -> LayerType:
    """Make a layer type that only looks at its bottom in another shape."""

    def forward(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
        (top,) = rule(layer, [bottoms[0].shape])
        return (bottoms[0].reshape(top),)

    return LayerType(rule, forward, per_image, keeps_sign)


def crop_offsets(layer: Layer, shapes: Sequence[Shape]) -> list[int]:
    """Return where the crop begins along each axis."""
    x, p = shapes[0], layer.param.crop_param
    axis = axis_index(layer, p.axis, len(x))
    cropped = len(x) - axis
    offsets = list(p.offset)
    need(
        layer,
        len(offsets) in (0, 1, cropped),
        f"crop_param gives {len(offsets)} offset; give none, one, or {cropped}: one for each "
        f"axis from {axis} on",
    )
    if len(offsets) <= 1:
        offsets = (offsets or [0]) * cropped
    return [0] * axis + offsets


def _crop_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(2, 2))
    x, like = shapes
    need(
        layer,
        len(x) == len(like),
        f"bottoms '{layer.bottoms[0]}' {x} and "
        f"'{layer.bottoms[1]}' {like} must have the same number of axes",
    )
    axis = axis_index(layer, layer.param.crop_param.axis, len(x))
    for i, offset in enumerate(crop_offsets(layer, shapes)):
        need(
            layer,
            i < axis or offset + like[i] <= x[i],
            f"cannot crop {like[i]} values at offset {offset} from axis {i} of bottom "
            f"'{layer.bottoms[0]}', which has {x[i]}",
        )
    return ((*x[:axis], *like[axis:]),)


def _crop(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    shapes = [x.shape for x in bottoms]
    (top,) = _crop_shapes(layer, shapes)
    where = tuple(slice(o, o + n) for o, n in zip(crop_offsets(layer, shapes), top, strict=True))
    return (np.ascontiguousarray(bottoms[0][where]),)


def _tile_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    x, p = shapes[0], layer.param.tile_param
    axis = axis_index(layer, p.axis, len(x))
    need(layer, p.tiles > 0, f"tile_param needs tiles > 0, has {p.tiles}")
    return ((*x[:axis], x[axis] * p.tiles, *x[axis + 1 :]),)


def _tile(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    x, p = bottoms[0], layer.param.tile_param
    repeats = [1] * x.ndim
    repeats[p.axis] = p.tiles
    return (np.tile(x, repeats),)


def permute_order(layer: Layer, ndim: int) -> list[int]:
    """Return which axis of the bottom each axis of the top is."""
    if layer.type == "Transpose":
        order = list(layer.param.transpose_param.dim)
        need(
            layer,
            sorted(order) == list(range(ndim)),
            f"dim {order} must name each axis of a bottom with {ndim} once",
        )
        return order
    order = list(layer.param.permute_param.order)
    need(
        layer,
        len(set(order)) == len(order) and max(order, default=0) < ndim,
        f"order {order} must name different axes of a bottom with {ndim}",
    )
    return order + [a for a in range(ndim) if a not in order]


def _permute_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    return (tuple(shapes[0][a] for a in permute_order(layer, len(shapes[0]))),)


def _permute(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    x = bottoms[0]
    return (np.ascontiguousarray(x.transpose(permute_order(layer, x.ndim))),)


def _permuted(like: str = "") -> LayerType:
    return LayerType(
        _permute_shapes,
        _permute,
        lambda layer, rank: permute_order(layer, rank)[0] == 0,
        keeps_sign,
        like=like,
    )


def _reshape_per_image(layer: Layer, rank: int) -> bool:
    """Whether the first axis is unchanged: the reshaped axes are behind it, or dim 0 copies it."""
    p = layer.param.reshape_param
    start = p.axis if p.axis >= 0 else rank + p.axis + 1
    copied = p.num_axes != 0 and list(p.shape.dim[:1]) == [0]
    return start > 0 or copied


def _joins_per_image(layer: Layer, rank: int) -> bool:
    return concat_axis(layer, "concat_dim", rank) != 0


def _concat_factors(layer: Layer, rank: int) -> Factors:
    return Factors("joined") if concat_axis(layer, "concat_dim", rank) == 1 else Factors()


def _slice_factors(layer: Layer, rank: int) -> Factors:
    return Factors("cut") if concat_axis(layer, "slice_dim", rank) == 1 else Factors()


def _concat_step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step | None:
    """Return a concat step if the layer joins along the channels of four axes."""
    first = bottoms[0]
    joins = len(top) == 4 and top[0] == first[0] and top[2:] == first[2:] and top != first
    return Step("concat") if joins else None


TYPES: dict[str, LayerType] = {
    "Concat": LayerType(
        _concat_shapes,
        _concat,
        _joins_per_image,
        keeps_sign,
        step=_concat_step,
        factors=_concat_factors,
    ),
    "Crop": LayerType(
        _crop_shapes,
        _crop,
        lambda layer, rank: layer.param.crop_param.axis % rank != 0,
        keeps_sign,
    ),
    "Flatten": _reviewed(
        _flatten_shapes, lambda layer, rank: layer.param.flatten_param.axis % rank != 0
    ),
    "Permute": _permuted(),
    "Reshape": _reviewed(_reshape_shapes, _reshape_per_image),
    "Silence": LayerType(_silence_shapes, _silence, always, keeps_sign),
    "Slice": LayerType(
        _slice_shapes,
        _slice,
        lambda layer, rank: concat_axis(layer, "slice_dim", rank) != 0,
        keeps_sign,
        factors=_slice_factors,
    ),
    "Split": LayerType(
        _split_shapes,
        _split,
        always,
        keeps_sign,
        identity=lambda layer: True,
        factors=keeps_factors,
    ),
    "Tile": LayerType(
        _tile_shapes,
        _tile,
        lambda layer, rank: layer.param.tile_param.axis % rank != 0,
        keeps_sign,
    ),
    "Transpose": _permuted(like="Permute"),
}

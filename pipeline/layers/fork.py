"""Layers of well-known forks that move pixels: Interp, Reorg, ShuffleChannel, Upsample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import UpsampleParameter
from pipeline.layers.base import LayerType, Shape, Sign, always, keeps_factors, keeps_sign
from pipeline.layers.check import arity, fail, need, rank

__all__ = ["TYPES", "zoom_size"]

_f32 = np.float32
#: The names that forks have for an Upsample layer's zoom.
_ZOOMS = ("scale", "scale_h", "scale_w", "stride", "stride_h", "stride_w", "height_scale",
          "width_scale")  # fmt: skip


def _interp_size(layer: Layer, size: int, target: int) -> int:
    """Return the output size along one axis whose cropped input has `size` pixels."""
    p = layer.param.interp_param
    shrink, zoom = p.HasField("shrink_factor"), p.HasField("zoom_factor")
    need(
        layer,
        p.shrink_factor >= 1 and p.zoom_factor >= 1,
        "shrink_factor and zoom_factor must be at least 1",
    )
    if target and not shrink and not zoom:
        return target
    if not shrink and not zoom:
        fail(layer, "interp_param needs height and width, zoom_factor or shrink_factor")
    size = (size - 1) // p.shrink_factor + 1
    return size + (size - 1) * (p.zoom_factor - 1)


def _interp_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(1, 2))
    rank(layer, shapes[0], 4)
    n, c, h, w = shapes[0]
    p = layer.param.interp_param
    need(
        layer,
        p.pad_beg <= 0 and p.pad_end <= 0,
        "pad_beg and pad_end can only crop: they must not be positive",
    )
    crop = p.pad_beg + p.pad_end
    need(layer, min(h, w) + crop > 0, f"cropping {-crop} pixels leaves nothing of {h} x {w}")
    if len(shapes) == 2:
        rank(layer, shapes[1], 4, 1)
        return ((n, c, *shapes[1][2:]),)
    need(layer, bool(p.height) == bool(p.width), "give both height and width")
    return (
        (n, c, _interp_size(layer, h + crop, p.height), _interp_size(layer, w + crop, p.width)),
    )


def _blend(x: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Resize one axis linearly, first and last pixel kept in place."""
    have = x.shape[axis]
    step = _f32(have - 1) / _f32(size - 1) if size > 1 else _f32(0)
    place = np.arange(size, dtype=_f32) * step
    low = np.minimum(place.astype(np.int64), have - 1)
    weight = (place - low.astype(_f32)).reshape((-1,) + (1,) * (x.ndim - 1 - axis))
    high = np.minimum(low + 1, have - 1)
    return x.take(low, axis=axis) * (_f32(1) - weight) + x.take(high, axis=axis) * weight


def _interp(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    x, p = bottoms[0], layer.param.interp_param
    (top,) = _interp_shapes(layer, [b.shape for b in bottoms])
    rows, columns = (slice(-p.pad_beg, n + p.pad_end) for n in x.shape[2:])
    return (_blend(_blend(x[:, :, rows, columns], 2, top[2]), 3, top[3]),)


def _reorg_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    rank(layer, shapes[0], 4)
    n, c, h, w = shapes[0]
    p = layer.param.reorg_param
    s = p.stride
    need(layer, s > 0, "reorg_param needs stride > 0")
    need(layer, c % (s * s) == 0, f"stride {s}: {s * s} must divide the {c} channels")
    if p.reverse:
        return ((n, c // (s * s), h * s, w * s),)
    need(layer, h % s == 0 and w % s == 0, f"stride {s} must divide the {h} x {w} pixels")
    return ((n, c * s * s, h // s, w // s),)


def _reorg(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    """Move pixels to channels as darknet does.

    Forward, darknet reads the memory of (C, H, W) as if it were (C/s^2, H*s, W*s).
    """
    x, p = bottoms[0], layer.param.reorg_param
    (top,) = _reorg_shapes(layer, [x.shape])
    n, c, h, w = x.shape
    s = p.stride
    if p.reverse:
        cells = x.reshape(n, s, s, c // (s * s), h, w)
        return (cells.transpose(0, 3, 4, 1, 5, 2).reshape(top),)
    cells = x.reshape(n, c // (s * s), h, s, w, s)
    return (cells.transpose(0, 3, 5, 1, 2, 4).reshape(top),)


def _shuffle_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    need(layer, len(shapes[0]) >= 2, f"bottom has shape {shapes[0]}; it needs a channel axis")
    group = layer.param.shuffle_channel_param.group
    need(
        layer,
        group > 0 and shapes[0][1] % group == 0,
        f"group {group} must divide the {shapes[0][1]} channels",
    )
    return (shapes[0],)


def _shuffle(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    x, group = bottoms[0], layer.param.shuffle_channel_param.group
    grouped = x.reshape(len(x), group, x.shape[1] // group, -1)
    return (np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(x.shape),)


def zoom_size(layer: Layer) -> tuple[int, int]:
    """Return the zoom of an Upsample layer with one bottom, (vertical, horizontal)."""
    p = layer.param.upsample_param
    if layer.type == "UpsampleDarknet":
        zoom: tuple[float, float] = (layer.param.upsample_darknet_param.stride,) * 2
        need(layer, zoom[0] >= 1, "upsample_darknet_param needs stride >= 1")
    elif p.HasField("stride_h") or p.HasField("stride_w"):
        zoom = (p.stride_h, p.stride_w)
    elif p.HasField("stride"):
        zoom = (p.stride, p.stride)
    elif p.HasField("height_scale") or p.HasField("width_scale"):
        zoom = (p.height_scale, p.width_scale)
    elif p.HasField("scale_h") or p.HasField("scale_w"):
        zoom = (p.scale_h, p.scale_w)
    elif p.HasField("scale"):
        zoom = (p.scale, p.scale)
    else:
        fail(layer, "upsample_param needs scale or stride: forks disagree on their defaults")
    need(
        layer,
        p.mode == UpsampleParameter.NEAREST,
        "mode is BILINEAR; NEAREST alone is known, replace it by Interp or Deconvolution",
    )
    need(
        layer,
        all(1 <= z < 1 << 31 and z == int(z) for z in zoom),
        f"zoom {zoom} must be whole numbers of at least 1",
    )
    return int(zoom[0]), int(zoom[1])


def _unpooled_size(layer: Layer, h: int, w: int) -> tuple[int, int]:
    """Return the output size of SegNet's Upsample (two bottoms: values and places)."""
    p = layer.param.upsample_param
    if p.HasField("upsample_h") and p.HasField("upsample_w"):
        return p.upsample_h, p.upsample_w
    zoom = (2, 2)
    if any(map(p.HasField, _ZOOMS)):
        zoom = zoom_size(layer)
    for flag, z in ((p.pad_out_h, zoom[0]), (p.pad_out_w, zoom[1])):
        need(layer, not flag or z == 2, "pad_out_h and pad_out_w need a scale of 2")
    return h * zoom[0] - int(p.pad_out_h), w * zoom[1] - int(p.pad_out_w)


def _upsample_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(1, 1 if layer.type == "UpsampleDarknet" else 2))
    rank(layer, shapes[0], 4)
    n, c, h, w = shapes[0]
    if len(shapes) == 1:
        zoom = zoom_size(layer)
        return ((n, c, h * zoom[0], w * zoom[1]),)
    need(
        layer,
        shapes[1] == shapes[0],
        f"the mask '{layer.bottoms[1]}' has shape {shapes[1]}, "
        f"bottom '{layer.bottoms[0]}' {shapes[0]}; they must be equal",
    )
    return ((n, c, *_unpooled_size(layer, h, w)),)


def _upsample(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    """Repeat pixels, or put each value where the mask of a MAX pooling says (SegNet)."""
    x, p = bottoms[0], layer.param.upsample_param
    (top,) = _upsample_shapes(layer, [b.shape for b in bottoms])
    if len(bottoms) == 1:
        zoom = zoom_size(layer)
        y = x.repeat(zoom[0], axis=2).repeat(zoom[1], axis=3)
        strided = any(map(p.HasField, ("stride", "stride_h", "stride_w")))
        # With a stride, as in the Ascend fork, scale multiplies the values.
        return (y * _f32(p.scale) if strided and p.scale != 1 else y,)
    planes, size = x.shape[0] * x.shape[1], top[2] * top[3]
    place = bottoms[1].reshape(planes, -1).astype(np.int64)
    if place.size and not (place.min() >= 0 and place.max() < size):
        raise ValueError(
            f"the mask '{layer.bottoms[1]}' holds places {place.min()} to "
            f"{place.max()}; the top has {size}: give the upsample_h and "
            "upsample_w of the pooling's bottom"
        )
    y = np.zeros((planes, size), dtype=_f32)
    # In memory order: of several values for one place the last is kept.
    np.put_along_axis(y, place, x.reshape(planes, -1), axis=1)
    return (y.reshape(top),)


TYPES: dict[str, LayerType] = {
    "Interp": LayerType(_interp_shapes, _interp, always, keeps_sign, factors=keeps_factors),
    "Reorg": LayerType(_reorg_shapes, _reorg, always, keeps_sign),
    "ShuffleChannel": LayerType(_shuffle_shapes, _shuffle, always, keeps_sign),
    "Upsample": LayerType(
        _upsample_shapes,
        _upsample,
        always,
        lambda layer: Sign.KEPT if layer.param.upsample_param.scale >= 0 else Sign.ANY,
    ),
    "UpsampleDarknet": LayerType(_upsample_shapes, _upsample, always, keeps_sign, like="Upsample"),
}

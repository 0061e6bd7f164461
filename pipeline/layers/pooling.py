"""Pooling (MAX, AVE, STOCHASTIC), spatial pyramid pooling, and ROI pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

import kernels
from caffeio.errors import NetError
from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import PoolingParameter, SPPParameter
from kernels.rounding import round_half_away
from pipeline.layers.base import Factors, LayerType, Shape, Step, always, keeps_sign, never
from pipeline.layers.check import arity, need, rank
from pipeline.layers.padded_pooling import Margins, padded_pool

__all__ = [
    "AVE",
    "FLT_MAX",
    "STOCHASTIC",
    "TYPES",
    "PoolParams",
    "pool_geometry",
    "pool_params",
    "pool_size",
    "position_bins",
    "pyramid_levels",
    "region_bins",
]

_MAX, AVE, STOCHASTIC = "MAX", "AVE", "STOCHASTIC"
_SIDES = ("pad_t", "pad_b", "pad_l", "pad_r")
FLT_MAX = np.finfo(np.float32).max

#: Of a pyramid: each has four times the bins of the one before.
_MOST_LEVELS = 16


@dataclass(frozen=True)
class PoolParams:
    """The parameters of a pooling; pairs are (vertical, horizontal).

    Attributes
    ----------
    method : str
        ``"MAX"``, ``"AVE"`` or ``"STOCHASTIC"``; of a fork also ``"AVE_EXC_PAD"``.
    kernel, stride, pad : (int, int)
    ceil_mode : bool
        Round the output size up (Caffe's way) or down.
    global_pooling : bool
        The window is the whole image.
    margins : tuple of four int, or None
        In place of `pad`, as a fork has it: rows above and below, columns left and right.
    """

    method: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    ceil_mode: bool = True
    global_pooling: bool = False
    margins: Margins | None = None


def _pair(layer: Layer, name: str, single: str, required: bool = False) -> tuple[int, int]:
    """Return a (vertical, horizontal) parameter from its one or its two fields."""
    p = layer.param.pooling_param
    fields = (f"{name}_h", f"{name}_w")
    has_field = [p.HasField(f) for f in fields]
    if any(has_field):
        need(layer, all(has_field), f"give both {fields[0]} and {fields[1]}")
        need(
            layer, not p.HasField(single), f"give {single} or {fields[0]} and {fields[1]}, not both"
        )
        return getattr(p, fields[0]), getattr(p, fields[1])
    need(layer, not required or p.HasField(single), f"pooling_param needs {single}")
    return getattr(p, single), getattr(p, single)


def pool_params(layer: Layer, bottom: Shape) -> PoolParams:
    """Read and check the pooling_param of a layer for a bottom (N, C, H, W).

    Raises
    ------
    caffeio.NetError
        If a parameter is missing, given twice, or does not fit the bottom.
    """
    p = layer.param.pooling_param
    method = PoolingParameter.PoolMethod.Name(p.pool)
    pad, stride = _pair(layer, "pad", "pad"), _pair(layer, "stride", "stride")
    if p.global_pooling:
        sized = any(map(p.HasField, ("kernel_size", "kernel_h", "kernel_w")))
        need(layer, not sized, "global_pooling takes the whole image; leave the kernel out")
        need(layer, pad == (0, 0) and stride == (1, 1), "global_pooling needs pad 0 and stride 1")
        kernel = (bottom[2], bottom[3])
    else:
        kernel = _pair(layer, "kernel", "kernel_size", required=True)
    need(
        layer,
        min(kernel) > 0 and min(stride) > 0,
        f"kernel {kernel} and stride {stride} must be positive",
    )
    need(layer, method != STOCHASTIC or pad == (0, 0), "STOCHASTIC pooling takes no pad")
    margins = tuple(getattr(p, side) for side in _SIDES) if any(map(p.HasField, _SIDES)) else None
    if method == "AVE_EXC_PAD" and margins is None:
        margins = (pad[0], pad[0], pad[1], pad[1])
    if margins is not None:
        need(layer, method != STOCHASTIC, "STOCHASTIC pooling takes no pad")
        pad = (0, 0)
    floor = p.round_mode == PoolingParameter.FLOOR or not p.ceil_mode
    return PoolParams(method, kernel, stride, pad, not floor, p.global_pooling, margins)


def pool_size(layer: Layer, p: PoolParams, height: int, width: int) -> tuple[int, int]:
    """Return the height and width of the top, or raise `NetError`."""
    if p.margins is not None:
        height, width = height + sum(p.margins[:2]), width + sum(p.margins[2:])
    try:
        sizes = [
            kernels.pool_output_size(n, k, s, b, p.ceil_mode, padded=any(p.pad))
            for n, k, s, b in zip((height, width), p.kernel, p.stride, p.pad, strict=True)
        ]
    except ValueError as error:
        raise NetError(
            f"{error} (bottom '{layer.bottoms[0]}' is {height} x {width})", layer.name
        ) from error
    return sizes[0], sizes[1]


def _pool_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, tops=(1, 2))
    rank(layer, shapes[0], 4)
    n, c, h, w = shapes[0]
    p = pool_params(layer, shapes[0])
    need(
        layer,
        len(layer.tops) == 1 or (p.method == _MAX and p.margins is None),
        "only MAX pooling has a second top (where each maximum was)",
    )
    top = (n, c, *pool_size(layer, p, h, w))
    return (top,) * len(layer.tops)


def _stochastic(x: np.ndarray, p: PoolParams, device: str) -> np.ndarray:
    """Return sum(x^2) / sum(x) of each window, Caffe's rule in phase TEST."""

    def mean(values: np.ndarray) -> np.ndarray:
        return kernels.avg_pool2d(
            values, p.kernel, stride=p.stride, ceil_mode=p.ceil_mode, device=device
        )

    total, squares = mean(x), mean(x * x)
    return np.divide(squares, total, out=np.zeros_like(total), where=total > 0)


def _pool(x: np.ndarray, p: PoolParams, device: str) -> np.ndarray:
    if p.margins is not None:
        return padded_pool(x, p.method, p.kernel, p.stride, p.margins, p.ceil_mode, device)
    if p.method == STOCHASTIC:
        return _stochastic(x, p, device)
    if p.method == AVE:
        return kernels.avg_pool2d(
            x, p.kernel, stride=p.stride, pad=p.pad, ceil_mode=p.ceil_mode, device=device
        )
    y = kernels.max_pool2d(
        x, p.kernel, stride=p.stride, pad=p.pad, ceil_mode=p.ceil_mode, device=device
    )
    assert isinstance(y, np.ndarray)
    return y


def _pooling(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    x = bottoms[0]
    p = pool_params(layer, x.shape)
    if len(layer.tops) == 1:
        return (_pool(x, p, device),)
    y, where = kernels.max_pool2d(
        x,
        p.kernel,
        stride=p.stride,
        pad=p.pad,
        ceil_mode=p.ceil_mode,
        return_indices=True,
        device=device,
    )
    return y, where.astype(np.float32)


def pyramid_levels(layer: Layer, height: int, width: int) -> list[PoolParams]:
    """Return the poolings of a pyramid: level i has 2^i bins along each axis."""
    p = layer.param.spp_param
    need(
        layer,
        0 < p.pyramid_height <= _MOST_LEVELS,
        f"pyramid_height is {p.pyramid_height}; it must be 1 to {_MOST_LEVELS}",
    )
    levels = []
    for level in range(p.pyramid_height):
        bins = 1 << level
        kernel = (-(-height // bins), -(-width // bins))
        pad = ((kernel[0] * bins - height + 1) // 2, (kernel[1] * bins - width + 1) // 2)
        levels.append(PoolParams(SPPParameter.PoolMethod.Name(p.pool), kernel, kernel, pad))
    return levels


def _spp_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    rank(layer, shapes[0], 4)
    n, c, h, w = shapes[0]
    sizes = [pool_size(layer, p, h, w) for p in pyramid_levels(layer, h, w)]
    if len(sizes) == 1:
        return ((n, c, *sizes[0]),)
    return ((n, c * sum(a * b for a, b in sizes)),)


def _spp(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    x = bottoms[0]
    tops = [_pool(x, p, device) for p in pyramid_levels(layer, *x.shape[2:])]
    if len(tops) == 1:
        return (tops[0],)
    return (np.concatenate([y.reshape(len(x), -1) for y in tops], axis=1),)


def _region_count(layer: Layer, rois: Shape) -> int:
    """Return how many regions the second bottom holds."""
    need(
        layer,
        len(rois) >= 2 and int(np.prod(rois[1:])) == 5,
        f"bottom '{layer.bottoms[1]}' has shape {rois}; it must hold five numbers for each "
        "region: image, x1, y1, x2, y2",
    )
    return rois[0]


def _check_images(layer: Layer, images: np.ndarray, batch: int) -> None:
    """Raise `ValueError` if a region is of an image that the batch has not."""
    if images.size and not (images.min() >= 0 and images.max() < batch):
        raise ValueError(
            f"bottom '{layer.bottoms[1]}' names image {images.max()}; the batch has {batch}"
        )


def _roi_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(2, 2))
    rank(layer, shapes[0], 4)
    count = _region_count(layer, shapes[1])
    p = layer.param.roi_pooling_param
    need(
        layer,
        p.pooled_h > 0 and p.pooled_w > 0,
        "roi_pooling_param needs pooled_h > 0 and pooled_w > 0",
    )
    return ((count, shapes[0][1], p.pooled_h, p.pooled_w),)


def region_bins(first: np.float32, last: np.float32, bins: int, size: int) -> list[tuple[int, int]]:
    """Split the pixels first..last into bins, clipped to the image."""
    start = int(first)
    width = np.float32(max(int(last) - start + 1, 1)) / np.float32(bins)
    edges = np.arange(bins + 1, dtype=np.float32) * width
    low = np.clip(np.floor(edges[:-1]).astype(int) + start, 0, size)
    high = np.clip(np.ceil(edges[1:]).astype(int) + start, 0, size)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _roi_pooling(
    layer: Layer, bottoms: Sequence[np.ndarray], device: str
) -> tuple[np.ndarray, ...]:
    x, rois = bottoms[0], bottoms[1].reshape(-1, 5)
    p = layer.param.roi_pooling_param
    scales = [
        p.spatial_scale_w if p.HasField("spatial_scale_w") else p.spatial_scale,
        p.spatial_scale_h if p.HasField("spatial_scale_h") else p.spatial_scale,
    ]
    corners = round_half_away(rois[:, 1:] * np.array(scales * 2, dtype=np.float32))
    images = rois[:, 0].astype(int)
    _check_images(layer, images, len(x))
    y = np.zeros((len(rois), x.shape[1], p.pooled_h, p.pooled_w), dtype=np.float32)
    for r, (image, (x1, y1, x2, y2)) in enumerate(zip(images, corners, strict=True)):
        rows, columns = (
            region_bins(y1, y2, p.pooled_h, x.shape[2]),
            region_bins(x1, x2, p.pooled_w, x.shape[3]),
        )
        for i, (top, bottom) in enumerate(rows):
            for j, (left, right) in enumerate(columns):
                if bottom > top and right > left:
                    y[r, :, i, j] = x[image, :, top:bottom, left:right].max(axis=(1, 2))
    return (np.maximum(y, -FLT_MAX, out=y),)


def _psroi_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(2, 2))
    rank(layer, shapes[0], 4)
    count = _region_count(layer, shapes[1])
    p, channels = layer.param.psroi_pooling_param, shapes[0][1]
    need(
        layer,
        p.output_dim > 0 and p.group_size > 0,
        "psroi_pooling_param needs output_dim > 0 and group_size > 0",
    )
    wanted = p.output_dim * p.group_size**2
    need(
        layer,
        channels == wanted,
        f"bottom '{layer.bottoms[0]}' has {channels} channels; output_dim {p.output_dim} and "
        f"group_size {p.group_size} need {wanted}",
    )
    return ((count, p.output_dim, p.group_size, p.group_size),)


def position_bins(
    first: np.float32, last: np.float32, scale: float, bins: int, size: int
) -> list[tuple[int, int]]:
    """Split the region first..last of the unscaled image into bins, clipped to `size` pixels."""
    begin, end = round_half_away(np.array([first, last], dtype=np.float32))
    start = np.float32(begin) * np.float32(scale)
    width = max(np.float32(np.float32(end) + 1) * np.float32(scale) - start, np.float32(0.1))
    step = np.float32(width) / np.float32(bins)
    places = np.arange(bins + 1, dtype=np.float32) * step + start
    low = np.clip(np.floor(places[:-1]).astype(int), 0, size)
    high = np.clip(np.ceil(places[1:]).astype(int), 0, size)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _psroi_pooling(
    layer: Layer, bottoms: Sequence[np.ndarray], device: str
) -> tuple[np.ndarray, ...]:
    """Average each bin of a region over channels of the bin's own (R-FCN)."""
    x, rois = bottoms[0], bottoms[1].reshape(-1, 5)
    p = layer.param.psroi_pooling_param
    k = p.group_size
    _check_images(layer, rois[:, 0].astype(int), len(x))
    maps = x.reshape(len(x), p.output_dim, k, k, *x.shape[2:])
    y = np.zeros((len(rois), p.output_dim, k, k), dtype=np.float32)
    for r, (image, x1, y1, x2, y2) in enumerate(rois):
        rows = position_bins(y1, y2, p.spatial_scale, k, x.shape[2])
        columns = position_bins(x1, x2, p.spatial_scale, k, x.shape[3])
        for i, (top, bottom) in enumerate(rows):
            for j, (left, right) in enumerate(columns):
                if bottom > top and right > left:
                    cells = maps[int(image), :, i, j, top:bottom, left:right]
                    y[r, :, i, j] = cells.mean(axis=(1, 2), dtype=np.float64)
    return (y,)


def pool_geometry(layer: Layer, bottom: Shape, top: Shape) -> kernels.PoolGeometry:
    """Return the windows of a Pooling layer."""
    p = pool_params(layer, bottom)
    return kernels.PoolGeometry(p.kernel, p.stride, p.pad, (top[2], top[3]))


def _macs(layer: Layer, bottom: Shape, top: Shape) -> int:
    p = pool_params(layer, bottom)
    return prod(top) * prod(p.kernel) if p.method == AVE else 0


def _step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step | None:
    """Return the windows' kind, if all of them meet the image."""
    bottom = bottoms[0]
    if pool_params(layer, bottom).margins is not None:
        return None
    g = pool_geometry(layer, bottom, top)
    for axis, size in enumerate(bottom[2:]):
        start = np.arange(g.out_size[axis]) * g.stride[axis] - g.pad[axis]
        if (np.minimum(start + g.kernel[axis], size) <= np.maximum(start, 0)).any():
            return None
    kind = {_MAX: "max", AVE: "average"}.get(pool_params(layer, bottom).method)
    return Step(kind) if kind else None


def _pool_factors(layer: Layer, rank: int) -> Factors:
    # a second top says where maxima lie, which no factor changes
    return Factors("kept") if len(layer.tops) == 1 else Factors()


TYPES: dict[str, LayerType] = {
    "PSROIPooling": LayerType(_psroi_shapes, _psroi_pooling, never, keeps_sign),
    "Pooling": LayerType(
        _pool_shapes, _pooling, always, keeps_sign, _macs, _step, factors=_pool_factors
    ),
    "ROIPooling": LayerType(_roi_shapes, _roi_pooling, never, keeps_sign),
    "SPP": LayerType(_spp_shapes, _spp, always, keeps_sign),
}

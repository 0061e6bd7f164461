"""Pooling (MAX, AVE, STOCHASTIC), spatial pyramid pooling, and ROI pooling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from caffeio.errors import NetError
from caffeio.graph import Layer
from kernels.pool import PoolGeometry, divisors
from kernels.rounding import round_half_away
from pipeline.layers.pooling import (
    AVE,
    FLT_MAX,
    STOCHASTIC,
    PoolParams,
    pool_params,
    pool_size,
    position_bins,
    pyramid_levels,
    region_bins,
)
from pipeline.retrain.layers.base import Context, TorchLayer
from pipeline.retrain.layers.common import numpy_form

__all__ = ["TYPES", "average"]


def _matches(x: Tensor, p: PoolParams, size: tuple[int, int]) -> bool:
    """Whether PyTorch's own rules of padding and rounding give the same windows."""
    for n, k, s, b, out in zip(x.shape[2:], p.kernel, p.stride, p.pad, size, strict=True):
        span = n + 2 * b - k
        if span < 0:
            return False
        windows = (-(-span // s) if p.ceil_mode else span // s) + 1
        if p.ceil_mode and (windows - 1) * s >= n + b:
            windows -= 1
        if 2 * b > k or windows != out:
            return False
    return True


def _padded(x: Tensor, p: PoolParams, size: tuple[int, int], value: float) -> Tensor:
    """Pad (or cut) the image to just what the windows cover."""
    edges = []
    for n, k, s, b, out in zip(x.shape[2:], p.kernel, p.stride, p.pad, size, strict=True):
        edges.append((b, (out - 1) * s + k - n - b))
    (top, bottom), (left, right) = edges
    return functional.pad(x, (left, right, top, bottom), value=value)


def _max(x: Tensor, p: PoolParams, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return each window's maximum and where in the image it first is."""
    if _matches(x, p, size):
        y, where = functional.max_pool2d(
            x, p.kernel, p.stride, p.pad, ceil_mode=p.ceil_mode, return_indices=True
        )
        return y, where
    # As Caffe: a window that lies beyond the image keeps the least float, and place -1.
    source = _padded(x, p, size, -float(FLT_MAX))
    y, where = functional.max_pool2d(source, p.kernel, p.stride, return_indices=True)
    row = where // source.shape[3] - p.pad[0]
    column = where % source.shape[3] - p.pad[1]
    inside = (row >= 0) & (row < x.shape[2]) & (column >= 0) & (column < x.shape[3])
    return y, torch.where(inside, row * x.shape[3] + column, -1)


def average(x: Tensor, p: PoolParams, size: tuple[int, int]) -> Tensor:
    """Return the mean of each window of an average pooling; `size` is that of the top."""
    if p.kernel == tuple(x.shape[2:]) and size == (1, 1) and p.pad == (0, 0):
        return x.mean((2, 3), keepdim=True)
    if _matches(x, p, size):
        return functional.avg_pool2d(x, p.kernel, p.stride, p.pad, ceil_mode=p.ceil_mode)
    sums = functional.avg_pool2d(_padded(x, p, size, 0), p.kernel, p.stride, divisor_override=1)
    counts = divisors((x.shape[2], x.shape[3]), PoolGeometry(p.kernel, p.stride, p.pad, size))
    return sums / torch.from_numpy(counts).to(x)


def _sampled(x: Tensor, p: PoolParams, size: tuple[int, int]) -> Tensor:
    """Pick one value of each window with a probability in proportion to it."""
    (kh, kw), (sh, sw) = p.kernel, p.stride
    windows = _padded(x, p, size, 0).unfold(2, kh, sh).unfold(3, kw, sw).flatten(4)
    sums = windows.detach().cumsum(-1)
    threshold = torch.rand_like(sums[..., -1:]) * sums[..., -1:]
    index = (sums < threshold).sum(-1, keepdim=True).clamp(max=kh * kw - 1)
    return windows.gather(-1, index).squeeze(-1)


def _stochastic(x: Tensor, p: PoolParams, size: tuple[int, int], train: bool) -> Tensor:
    """Sample in phase TRAIN; in phase TEST return sum(x^2) / sum(x) of each window."""
    if train:
        return _sampled(x, p, size)
    total, squares = average(x, p, size), average(x * x, p, size)
    positive = total > 0
    return torch.where(positive, squares / torch.where(positive, total, 1), 0)


def _pool(layer: Layer, x: Tensor, p: PoolParams, context: Context) -> Tensor:
    size = pool_size(layer, p, x.shape[2], x.shape[3])
    if p.method == STOCHASTIC:
        return _stochastic(x, p, size, context.train)
    return average(x, p, size) if p.method == AVE else _max(x, p, size)[0]


def _pooling(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x = bottoms[0]
    p = pool_params(layer, tuple(x.shape))
    if p.margins is not None:
        raise NetError("padding given side by side has no form for training", layer.name)
    if len(layer.tops) == 1:
        return (_pool(layer, x, p, context),)
    y, where = _max(x, p, pool_size(layer, p, x.shape[2], x.shape[3]))
    return y, where.to(x.dtype)


def _spp(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x = bottoms[0]
    tops = [_pool(layer, x, p, context) for p in pyramid_levels(layer, x.shape[2], x.shape[3])]
    return (tops[0] if len(tops) == 1 else torch.cat([y.flatten(1) for y in tops], 1),)


def _regions(layer: Layer, rois: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the image of each region, and its corners x1, y1, x2, y2 in pixels."""
    p = layer.param.roi_pooling_param
    scales = [
        p.spatial_scale_w if p.HasField("spatial_scale_w") else p.spatial_scale,
        p.spatial_scale_h if p.HasField("spatial_scale_h") else p.spatial_scale,
    ]
    corners = round_half_away(rois[:, 1:] * np.array(scales * 2, dtype=np.float32))
    return rois[:, 0].astype(int), corners


def _steps(bins: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the pixels of each bin, its last repeated to a common length, and which are empty."""
    low, high = torch.tensor(bins, device=device).unbind(1)
    length = max(int((high - low).max()), 1)
    pixels = low[:, None] + torch.arange(length, device=device)
    return torch.minimum(pixels, high[:, None] - 1).clamp(min=0), high <= low


def _first_maxima(
    x: Tensor, rows: Sequence[tuple[int, int]], columns: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Return where the bins of a region of (C, H, W) are largest, and which are empty."""
    (row, no_rows), (column, no_columns) = _steps(rows, x.device), _steps(columns, x.device)
    patch = x[:, row[:, :, None, None], column]
    best = patch.transpose(2, 3).flatten(3).argmax(-1)
    down = torch.arange(len(rows), device=x.device)[:, None]
    across = torch.arange(len(columns), device=x.device)
    wide = column.shape[1]
    where = row[down, best // wide] * x.shape[2] + column[across, best % wide]
    return where, no_rows[:, None] | no_columns


def _roi_pooling(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x, p = bottoms[0], layer.param.roi_pooling_param
    n, channels, height, width = x.shape
    images, corners = _regions(layer, bottoms[1].detach().cpu().float().reshape(-1, 5).numpy())
    if images.size and not (images.min() >= 0 and images.max() < n):
        numpy_form(layer, bottoms, blobs)  # raises: it says which image is wrong
    planes = torch.arange(n * channels, device=x.device).reshape(n, channels, 1, 1)
    places, empty = [], []
    for image, (x1, y1, x2, y2) in zip(images.tolist(), corners, strict=True):
        rows, columns = (
            region_bins(y1, y2, p.pooled_h, height),
            region_bins(x1, x2, p.pooled_w, width),
        )
        where, nothing = _first_maxima(x[image].detach(), rows, columns)
        places.append(planes[image] * (height * width) + where)
        empty.append(nothing)
    if not places:
        return (x.new_zeros(0, channels, p.pooled_h, p.pooled_w),)
    return (x.take(torch.stack(places)).masked_fill(torch.stack(empty)[:, None], 0),)


def _psroi_pooling(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x, p = bottoms[0], layer.param.psroi_pooling_param
    n, _, height, width = x.shape
    rois = bottoms[1].detach().cpu().float().reshape(-1, 5).numpy()
    images, k = rois[:, 0].astype(int), p.group_size
    if images.size and not (images.min() >= 0 and images.max() < n):
        numpy_form(layer, bottoms, blobs)  # raises: it says which image is wrong
    maps = x.reshape(n, p.output_dim, k, k, height, width)
    regions = []
    for image, (_, x1, y1, x2, y2) in zip(images.tolist(), rois, strict=True):
        rows = position_bins(y1, y2, p.spatial_scale, k, height)
        columns = position_bins(x1, x2, p.spatial_scale, k, width)
        cells = [
            maps[image, :, i, j, slice(*row), slice(*column)].flatten(1)
            for i, row in enumerate(rows)
            for j, column in enumerate(columns)
        ]
        means = [c.sum(1) / max(c.shape[1], 1) for c in cells]  # an empty bin is 0
        regions.append(torch.stack(means, dim=1).reshape(p.output_dim, k, k))
    if not regions:
        return (x.new_zeros(0, p.output_dim, k, k),)
    return (torch.stack(regions),)


TYPES: dict[str, TorchLayer] = {
    "PSROIPooling": TorchLayer(_psroi_pooling),
    "Pooling": TorchLayer(_pooling),
    "ROIPooling": TorchLayer(_roi_pooling),
    "SPP": TorchLayer(_spp),
}

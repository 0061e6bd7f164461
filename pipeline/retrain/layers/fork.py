"""Layers of well-known forks that move pixels: Interp, Reorg, ShuffleChannel, Upsample."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from caffeio.graph import Layer
from pipeline.layers.fork import zoom_size
from pipeline.retrain.layers.base import Context, TorchLayer
from pipeline.retrain.layers.common import indices, top_shape

__all__ = ["TYPES"]


def _interp(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x, p = bottoms[0], layer.param.interp_param
    size = top_shape(layer, bottoms)[2:]
    rows, columns = (slice(-p.pad_beg, n + p.pad_end) for n in x.shape[2:])
    cropped = x[:, :, rows, columns]
    return (functional.interpolate(cropped, size, mode="bilinear", align_corners=True),)


def _reorg(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x, p = bottoms[0], layer.param.reorg_param
    (n, c, h, w), s = x.shape, p.stride
    if p.reverse:
        cells = x.reshape(n, s, s, c // (s * s), h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        cells = x.reshape(n, c // (s * s), h, s, w, s).permute(0, 3, 5, 1, 2, 4)
    return (cells.reshape(top_shape(layer, bottoms)),)


def _shuffle(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x, group = bottoms[0], layer.param.shuffle_channel_param.group
    grouped = x.reshape(x.shape[0], group, x.shape[1] // group, *x.shape[2:])
    return (grouped.transpose(1, 2).reshape(x.shape),)


def _unpool(layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor]) -> Tensor:
    """Put each value where the mask of a MAX pooling says (SegNet)."""
    x, top = bottoms[0], top_shape(layer, bottoms)
    place = indices(layer, bottoms, blobs, 1, top[2] * top[3]).flatten(2)
    empty = x.new_zeros(*x.shape[:2], top[2] * top[3])
    return empty.scatter(2, place, x.flatten(2)).reshape(top)


def _upsample(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    if len(bottoms) == 2:
        return (_unpool(layer, bottoms, blobs),)
    x, p, zoom = bottoms[0], layer.param.upsample_param, zoom_size(layer)
    pixels = x[:, :, :, None, :, None].expand(-1, -1, -1, zoom[0], -1, zoom[1])
    y = pixels.reshape(top_shape(layer, bottoms))
    strided = any(map(p.HasField, ("stride", "stride_h", "stride_w")))
    # With a stride, as in the Ascend fork, scale multiplies the values.
    return (y * p.scale if strided and p.scale != 1 else y,)


TYPES: dict[str, TorchLayer] = {
    "Interp": TorchLayer(_interp),
    "Reorg": TorchLayer(_reorg),
    "ShuffleChannel": TorchLayer(_shuffle),
    "Upsample": TorchLayer(_upsample),
}

"""Layers that move, select and count values without weights: Concat, Slice, Reshape and kin."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from caffeio.graph import Layer
from pipeline.layers.shape import concat_axis, crop_offsets, permute_order, slice_cuts
from pipeline.retrain.layers.base import Context, TorchLayer
from pipeline.retrain.layers.common import bottom_shapes, top_shape

__all__ = ["TYPES"]


def _concat(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    return (torch.cat(list(bottoms), concat_axis(layer, "concat_dim", bottoms[0].ndim)),)


def _slice(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x = bottoms[0]
    axis = concat_axis(layer, "slice_dim", x.ndim)
    sizes = [b - a for a, b in pairwise(slice_cuts(layer, axis, x.shape[axis]))]
    return x.split(sizes, axis)


def _split(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    return (bottoms[0],) * len(layer.tops)


def _silence(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    return ()


def _reshape(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    return (bottoms[0].reshape(top_shape(layer, bottoms)),)


def _crop(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    offsets = crop_offsets(layer, bottom_shapes(bottoms))
    y = bottoms[0]
    for axis, (start, length) in enumerate(zip(offsets, top_shape(layer, bottoms), strict=True)):
        y = y.narrow(axis, start, length)
    return (y,)


def _tile(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x, p = bottoms[0], layer.param.tile_param
    repeats = [1] * x.ndim
    repeats[p.axis] = p.tiles
    return (x.repeat(repeats),)


def _permute(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    return (bottoms[0].permute(permute_order(layer, bottoms[0].ndim)),)


TYPES: dict[str, TorchLayer] = {
    "Concat": TorchLayer(_concat),
    "Crop": TorchLayer(_crop),
    "Flatten": TorchLayer(_reshape),
    "Permute": TorchLayer(_permute),
    "Reshape": TorchLayer(_reshape),
    "Silence": TorchLayer(_silence),
    "Slice": TorchLayer(_slice),
    "Split": TorchLayer(_split),
    "Tile": TorchLayer(_tile),
}

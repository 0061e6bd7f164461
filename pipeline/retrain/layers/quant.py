"""The layers that the quantization tool puts into a net: rounded, with the gradient of x."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from caffeio.graph import Layer
from pipeline.retrain.layers.base import BlobSpec, Context, Shape, TorchLayer
from pipeline.retrain.layers.common import constant, numpy_form, straight_through

__all__ = ["TYPES"]


def _rounded(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    (y,) = numpy_form(layer, bottoms, blobs)
    return (straight_through(bottoms[0], y),)


def _same(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    return (bottoms[0],)


def _dequant_blobs(layer: Layer, shapes: Sequence[Shape]) -> tuple[BlobSpec, ...]:
    """Return deq_scale, shift_bit and offset_w; without shifts the layer changes nothing."""
    entries = shapes[0][1] if layer.param.dequant_param.channel_wise else 1
    return tuple(BlobSpec((entries,), constant(value)) for value in (1, 0, 0))


TYPES: dict[str, TorchLayer] = {
    "AntiQuant": TorchLayer(_same),
    "DeQuant": TorchLayer(_rounded, _dequant_blobs, learned=False),
    "Quant": TorchLayer(_rounded),
}

"""Layers that normalize: BatchNorm, LRN, MVN, and SSD's Normalize."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import LRNParameter
from pipeline.layers.check import fail, need
from pipeline.layers.folding import statistics_share
from pipeline.layers.pooling import PoolParams
from pipeline.retrain.layers.base import BlobSpec, Context, Shape, TorchLayer
from pipeline.retrain.layers.common import constant, filler_or, numpy_form, root
from pipeline.retrain.layers.pooling import average

__all__ = ["TYPES"]


def _batch_norm_blobs(layer: Layer, shapes: Sequence[Shape]) -> tuple[BlobSpec, ...]:
    channels = shapes[0][1] if len(shapes[0]) > 1 else 1
    need(
        layer,
        not layer.param.batch_norm_param.scale_bias,
        "scale_bias is not trained here; put a Scale layer behind it instead",
    )
    return tuple(BlobSpec(shape, constant(0)) for shape in ((channels,), (channels,), (1,)))


def _stored(x: Tensor, blobs: Sequence[Tensor], eps: float) -> Tensor:
    """Normalize by the stored averages: sums, divided by the scale factor (0 where that is 0)."""
    with torch.no_grad():
        share = statistics_share(np.float32(blobs[2].item()))
        mean, variance = (blob.reshape(-1) * float(share) for blob in blobs[:2])
    return functional.batch_norm(x, mean, variance, eps=eps)


def _alone(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize by the batch's own statistics: return top, mean, and unbiased variance."""
    mean, variance = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    y = functional.batch_norm(x, mean, variance, training=True, momentum=1.0, eps=eps)
    return y, mean, variance


def _together(x: Tensor, eps: float, context: Context) -> tuple[Tensor, Tensor, Tensor]:
    """Do as `_alone`, with the statistics of all processes' batches, or of one value."""
    axes = [a for a in range(x.ndim) if a != 1]
    count = x.numel() // x.shape[1] * context.processes
    spread = (1, -1) + (1,) * (x.ndim - 2)
    mean = context.total(x.sum(axes)) / count
    centered = x - mean.reshape(spread)
    variance = context.total(centered.square().sum(axes)) / count
    y = centered * (variance + eps).rsqrt().reshape(spread)
    return y, mean, variance * (count / max(count - 1, 1))


def _collect(layer: Layer, blobs: Sequence[Tensor], mean: Tensor, variance: Tensor) -> None:
    """Add a batch's statistics to the stored sums, whose weights fade."""
    fraction = layer.param.batch_norm_param.moving_average_fraction
    for blob, value in zip(blobs, (mean, variance, mean.new_ones(1)), strict=True):
        blob.mul_(fraction).add_(value.reshape(blob.shape))


def _batch_norm(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    p, bottom = layer.param.batch_norm_param, bottoms[0]
    x = bottom if bottom.ndim > 1 else bottom.reshape(-1, 1)
    use_global_stats = p.use_global_stats if p.HasField("use_global_stats") else not context.train
    if use_global_stats:
        return (_stored(x, blobs, p.eps).reshape(bottom.shape),)
    single = context.processes == 1 and x.numel() > x.shape[1]
    y, mean, variance = _alone(x, p.eps) if single else _together(x, p.eps, context)
    if context.train:
        with torch.no_grad():
            _collect(layer, blobs, mean, variance)
    return (y.reshape(bottom.shape),)


def _across_channels(x: Tensor, p: LRNParameter) -> Tensor:
    """Return ``k + alpha / n * sum of squares`` over the n channels around each."""
    channels = x.shape[1]
    half = min(p.local_size // 2, channels)  # a wider window holds no more
    squares = functional.pad(x.square(), (0, 0, 0, 0, half, half))
    total = squares[:, :channels]
    for i in range(1, 2 * half + 1):
        total = total + squares[:, i : i + channels]
    return total * (p.alpha / p.local_size) + p.k


def _lrn(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x, p = bottoms[0], layer.param.lrn_param
    if p.norm_region == LRNParameter.WITHIN_CHANNEL:
        n, half = p.local_size, p.local_size // 2
        window = PoolParams("AVE", (n, n), (1, 1), (half, half))
        # As Caffe: an average over an n x n window, and 1 for k.
        scale = average(x.square(), window, (x.shape[2], x.shape[3])) * p.alpha + 1
    else:
        scale = _across_channels(x, p)
    return (x * scale.pow(-p.beta),)


def _mvn(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x, p = bottoms[0], layer.param.mvn_param
    rows = x.reshape(*x.shape[: 1 if p.across_channels else 2], -1)
    y = rows - rows.mean(-1, keepdim=True)
    if p.normalize_variance:
        y = y / (root(y.square().mean(-1, keepdim=True), p.eps) + p.eps)
    return (y.reshape(x.shape),)


def _normalize_blobs(layer: Layer, shapes: Sequence[Shape]) -> tuple[BlobSpec, ...]:
    p = layer.param.norm_param
    shape = () if p.channel_shared else (shapes[0][1],)
    return (BlobSpec(shape, filler_or(p, "scale_filler", 1)),)


def _normalize(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    """Divide by the L2 norm over channels (and space), then scale each channel (SSD)."""
    x, p = bottoms[0], layer.param.norm_param
    axes = tuple(range(1, x.ndim)) if p.across_spatial else (1,)
    length = (x.square().sum(axes, keepdim=True) + p.eps).sqrt()
    return (x / length * blobs[0].reshape((-1,) + (1,) * (x.ndim - 2)),)


def _bn_blobs(layer: Layer, shapes: Sequence[Shape]) -> tuple[BlobSpec, ...]:
    fail(
        layer, "type 'BN' of forks is not trained here; use BatchNorm with a Scale layer behind it"
    )


def _bn(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    return numpy_form(layer, bottoms, blobs)


TYPES: dict[str, TorchLayer] = {
    "BN": TorchLayer(_bn, _bn_blobs),
    "BatchNorm": TorchLayer(_batch_norm, _batch_norm_blobs, learned=False),
    "LRN": TorchLayer(_lrn),
    "MVN": TorchLayer(_mvn),
    "Normalize": TorchLayer(_normalize, _normalize_blobs),
}

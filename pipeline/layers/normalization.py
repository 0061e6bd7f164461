"""Layers that normalize: BatchNorm, forks' BN, LRN, MVN, and SSD's Normalize."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import kernels
from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import TRAIN, BNParameter, LRNParameter
from pipeline.layers.base import LayerType, Shape, Step, always, any_sign, keeps_sign
from pipeline.layers.check import arity, blob, expect_blobs, need, rank
from pipeline.layers.folding import Affine, batch_norm_affine, scale_affine, statistics_share

__all__ = ["TYPES", "uses_global_stats"]

_f32 = np.float32


def uses_global_stats(layer: Layer) -> bool:
    """Whether a BatchNorm layer uses its stored mean and variance.

    As given in the prototxt; by default true, unless the layer itself is of phase TRAIN.
    """
    p = layer.param.batch_norm_param
    if p.HasField("use_global_stats"):
        return p.use_global_stats
    return not (layer.param.HasField("phase") and layer.param.phase == TRAIN)


def _batch_norm_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    x = shapes[0]
    need(layer, len(x) >= 1, "bottom has no axes; BatchNorm needs at least one")
    channels = x[1] if len(x) > 1 else 1
    if layer.blobs or uses_global_stats(layer):
        own = layer.param.batch_norm_param.scale_bias
        expect_blobs(
            layer,
            mean=(channels,),
            variance=(channels,),
            scale_factor=(1,),
            **({"scale": (channels,), "bias": (channels,)} if own else {}),
        )
    return (x,)


def _batch_norm(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    """Subtract the mean and divide by ``sqrt(variance + eps)``, per channel.

    The stored sums are divided by the scale factor, or taken as 0 where that is 0. With
    `scale_bias` a factor and a term of its own follow.
    """
    x, p = bottoms[0], layer.param.batch_norm_param
    spread = _spread(x)
    eps = _f32(p.eps)
    if uses_global_stats(layer):
        share = statistics_share(blob(layer, 2)[0])
        mean, variance = blob(layer, 0) * share, blob(layer, 1) * share
        y = x - mean.reshape(spread)
        y /= np.sqrt(variance + eps).reshape(spread)
    else:
        y = _by_the_batch(x, eps)
    if p.scale_bias:
        y *= blob(layer, 3).reshape(spread)
        y += blob(layer, 4).reshape(spread)
    return (y,)


def _spread(x: np.ndarray) -> Shape:
    """Return the shape in which one value for each channel broadcasts over x."""
    return (-1,) + (1,) * (x.ndim - 2) if x.ndim > 1 else (1,)


def _by_the_batch(x: np.ndarray, eps: np.float32) -> np.ndarray:
    """Normalize each channel by the batch's own mean and variance."""
    axes = tuple(a for a in range(x.ndim) if a != 1)
    y = x - x.mean(axis=axes, keepdims=True, dtype=np.float64).astype(_f32)
    variance = np.square(y).mean(axis=axes, keepdims=True, dtype=np.float64).astype(_f32)
    y /= np.sqrt(variance + eps)
    return y


#: SegNet's, where BN uses the batch's statistics.
_SEGNET_EPS = _f32(1e-9)


def _bn_of_the_batch(layer: Layer) -> bool:
    """Whether a BN layer normalizes by the batch: SegNet's two blobs, not in mode INFERENCE.

    TSN's and PSPNet's four blobs hold the statistics, which inference uses.
    """
    p = layer.param.bn_param
    return len(layer.blobs) == 2 and p.bn_mode != BNParameter.INFERENCE and not p.frozen


def _bn_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    x = shapes[0]
    need(layer, len(x) >= 2, f"bottom has shape {x}; BN needs a channel axis")
    p = layer.param.bn_param
    if not layer.blobs:
        segnet = any(map(p.HasField, ("bn_mode", "scale_filler", "shift_filler")))
        names = ("slope", "bias") if segnet else ("slope", "bias", "mean", "variance")
        expect_blobs(layer, **dict.fromkeys(names, (x[1],)))
    sizes = [b.size for b in layer.blobs]
    need(
        layer,
        sizes in ([x[1]] * 2, [x[1]] * 4),
        f"has blobs of {sizes} values; BN needs slope and bias, or slope, bias, mean and "
        f"variance, of {x[1]} values each",
    )
    return (x,)


def _bn(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    """Normalize as forks do: by slope and bias alone, or by stored mean and variance before."""
    x = bottoms[0]
    spread = _spread(x)
    slope, bias, *stored = (blob(layer, i).reshape(spread) for i in range(len(layer.blobs)))
    if stored:
        y = x - stored[0]
        y /= np.sqrt(stored[1] + _f32(layer.param.bn_param.eps))
        y *= slope
    else:
        y = (_by_the_batch(x, _SEGNET_EPS) if _bn_of_the_batch(layer) else x) * slope
    y += bias
    return (y,)


def _bn_affine(layer: Layer) -> Affine | None:
    if not layer.blobs or _bn_of_the_batch(layer):
        return None
    slope, bias, *stored = layer.blobs
    if not stored:
        return scale_affine((slope, bias))
    one = np.ones(1, dtype=_f32)
    return batch_norm_affine((*stored, one), layer.param.bn_param.eps, (slope, bias))


def _bn_step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step | None:
    affine = _bn_affine(layer)
    return None if affine is None else Step("affine", affine=affine)


def _bn_note(layer: Layer) -> str:
    if not _bn_of_the_batch(layer):
        return ""
    return (
        f"layer '{layer.name}': bn_mode is LEARN: it normalizes with the batch's own statistics, "
        "so results depend on the batch; SegNet's script for inference makes it INFERENCE"
    )


def _lrn_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    rank(layer, shapes[0], 4)
    size = layer.param.lrn_param.local_size
    need(layer, size % 2 == 1, f"local_size {size} must be odd")
    return (shapes[0],)


def _lrn(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    """Divide by ``(k + alpha / n * sum of squares) ** beta`` over the n neighbours.

    Within a channel Caffe averages over an n x n window and takes k as 1.
    """
    x, p = bottoms[0], layer.param.lrn_param
    half = p.local_size // 2
    squares = np.square(x)
    if p.norm_region == LRNParameter.WITHIN_CHANNEL:
        scale = kernels.avg_pool2d(
            squares, (p.local_size, p.local_size), stride=(1, 1), pad=(half, half), device=device
        )
        scale *= _f32(p.alpha)
        scale += _f32(1)
    else:
        half = min(half, x.shape[1])  # a wider window holds no more
        padded = np.pad(squares, ((0, 0), (half, half), (0, 0), (0, 0)))
        scale = np.zeros_like(x)
        for i in range(2 * half + 1):
            scale += padded[:, i : i + x.shape[1]]
        scale *= _f32(p.alpha / p.local_size)
        scale += _f32(p.k)
    np.power(scale, _f32(-p.beta), out=scale)
    scale *= x
    return (scale,)


def _mvn_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    need(layer, len(shapes[0]) >= 2, f"bottom has shape {shapes[0]}; MVN needs a channel axis")
    return (shapes[0],)


def _mvn(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    x, p = bottoms[0], layer.param.mvn_param
    axes = tuple(range(1 if p.across_channels else 2, x.ndim))
    y = x - x.mean(axis=axes, keepdims=True, dtype=np.float64).astype(_f32)
    if p.normalize_variance:
        variance = np.square(y).mean(axis=axes, keepdims=True, dtype=np.float64).astype(_f32)
        y /= np.sqrt(variance) + _f32(p.eps)
    return (y,)


def _normalize_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    need(layer, len(shapes[0]) >= 2, f"bottom has shape {shapes[0]}; Normalize needs channels")
    shared = layer.param.norm_param.channel_shared
    expect_blobs(layer, scale=() if shared else (shapes[0][1],))
    return (shapes[0],)


def _normalize(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    """Divide by the L2 norm over channels (and space), then scale each channel (SSD)."""
    x, p = bottoms[0], layer.param.norm_param
    axes = tuple(range(1, x.ndim)) if p.across_spatial else (1,)
    norm = np.sqrt(np.square(x).sum(axis=axes, keepdims=True) + _f32(p.eps))
    y = x / norm
    y *= blob(layer, 0).reshape((-1,) + (1,) * (x.ndim - 2))
    return (y,)


def _batch_norm_step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step | None:
    if not uses_global_stats(layer):
        return None
    return Step("affine", affine=batch_norm_affine(layer.blobs, layer.param.batch_norm_param.eps))


def _own_affine(layer: Layer) -> Affine | None:
    """Return what a BatchNorm with a scale and a term of its own does."""
    p = layer.param.batch_norm_param
    if len(layer.blobs) != 5 or not uses_global_stats(layer):
        return None
    return batch_norm_affine(layer.blobs, p.eps)


def _batch_norm_note(layer: Layer) -> str:
    p = layer.param.batch_norm_param
    if not p.HasField("use_global_stats") or p.use_global_stats:
        return ""
    return (
        f"layer '{layer.name}': use_global_stats is false: it normalizes with the batch's own "
        "statistics, so results depend on the batch; set it to true for inference"
    )


TYPES: dict[str, LayerType] = {
    "BN": LayerType(
        _bn_shapes,
        _bn,
        lambda layer, rank: not _bn_of_the_batch(layer),
        any_sign,
        step=_bn_step,
        affine=_bn_affine,
        note=_bn_note,
    ),
    "BatchNorm": LayerType(
        _batch_norm_shapes,
        _batch_norm,
        lambda layer, rank: uses_global_stats(layer),
        any_sign,
        step=_batch_norm_step,
        affine=_own_affine,
        note=_batch_norm_note,
    ),
    "LRN": LayerType(_lrn_shapes, _lrn, always, keeps_sign),
    "MVN": LayerType(_mvn_shapes, _mvn, always, any_sign),
    "Normalize": LayerType(_normalize_shapes, _normalize, always, any_sign),
}

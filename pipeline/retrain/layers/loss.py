"""Losses: scalars that compare predictions with labels. No gradient flows to labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import HingeLossParameter, LossParameter
from pipeline.layers.loss import FLT_MIN, LOG_THRESHOLD, checked_labels, infogain_matrix, normalizer
from pipeline.retrain.layers.base import Context, Shape, TorchLayer
from pipeline.retrain.layers.common import root, straight_through

__all__ = ["TYPES"]


def _checked_labels(
    layer: Layer, labels: Tensor, classes: int, shape: Shape
) -> tuple[Tensor, Tensor | None]:
    """Return integer labels in `shape`, and which of them count; None if all do.

    Labels that do not count (ignore_label) become 0. One that counts and is not
    0..classes - 1 raises what the NumPy form raises.
    """
    p = layer.param.loss_param
    index, counts = labels.detach().long().reshape(shape), None
    if p.HasField("ignore_label"):
        counts = index != p.ignore_label
        index = torch.where(counts, index, 0)
    if index.numel():
        low, high = torch.stack(torch.aminmax(index)).tolist()
        if low < 0 or high >= classes:
            checked_labels(layer, labels.detach().cpu().numpy(), classes, shape)
    return index, counts


def _divisor(
    layer: Layer,
    shape: tuple[int, int],
    counts: Tensor | None,
    context: Context,
    default: int = LossParameter.VALID,
) -> float:
    """Return what the loss of (outer, inner) predictions is divided by.

    With several processes: their mean number of labels that count.
    """
    outer, inner = shape
    if counts is None:
        return normalizer(layer, outer, inner, outer * inner, default)
    counted = context.total(counts.sum().float()) / context.processes
    return normalizer(layer, outer, inner, float(counted), default)


def _at_least(x: Tensor, least: float) -> Tensor:
    """Return ``max(x, least)`` with the gradient of x: Caffe clamps values, not gradients."""
    return straight_through(x, x.detach().clamp(min=least))


def _sum_where(values: Tensor, counts: Tensor | None) -> Tensor:
    return values.sum() if counts is None else torch.where(counts, values, 0).sum()


def _by_class(x: Tensor, axis: int) -> Tensor:
    """Return x as (outer, classes, inner)."""
    return x.reshape(math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))


def _softmax_loss(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x = bottoms[0]
    axis = layer.param.softmax_param.axis % x.ndim
    logs = _by_class(torch.log_softmax(x, axis), axis)
    outer, classes, inner = logs.shape
    labels, counts = _checked_labels(layer, bottoms[1], classes, (outer, inner))
    picked = _at_least(logs.gather(1, labels[:, None]).squeeze(1), math.log(FLT_MIN))
    loss = -_sum_where(picked, counts) / _divisor(layer, (outer, inner), counts, context)
    return _with_probabilities(layer, loss, logs, x)


def _with_probabilities(layer: Layer, loss: Tensor, logs: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Return the loss and, for a second top, the softmax; as in Caffe that has no gradient."""
    return (loss,) if len(layer.tops) == 1 else (loss, logs.detach().exp().reshape(x.shape))


def _infogain(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x, p = bottoms[0], layer.param
    matrix = bottoms[2] if len(bottoms) == 3 else torch.from_numpy(infogain_matrix(layer)).to(x)
    axis = p.infogain_loss_param.axis % x.ndim
    logs = _by_class(torch.log_softmax(x, p.softmax_param.axis), axis)
    outer, classes, inner = logs.shape
    labels, counts = _checked_labels(layer, bottoms[1], classes, (outer, inner))
    gains = matrix.detach().reshape(classes, classes)[labels].transpose(1, 2)
    gained = (gains * _at_least(logs, math.log(LOG_THRESHOLD))).sum(1)
    loss = -_sum_where(gained, counts) / _divisor(layer, (outer, inner), counts, context)
    return _with_probabilities(layer, loss, logs, x)


def _multinomial(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    prob = bottoms[0].flatten(1)
    labels, _ = _checked_labels(layer, bottoms[1], prob.shape[1], (len(prob), 1))
    picked = _at_least(prob.gather(1, labels), float(LOG_THRESHOLD))
    return (-picked.log().sum() / len(prob),)


def _hinge(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x = bottoms[0].flatten(1)
    labels, _ = _checked_labels(layer, bottoms[1], x.shape[1], (len(x), 1))
    signs = torch.ones_like(x).scatter_(1, labels, -1)
    margins = x * signs + 1
    margins = torch.where(margins > 0, margins, 0)  # as Caffe's max(0, x): NaN counts as 0
    if layer.param.hinge_loss_param.norm == HingeLossParameter.L2:
        margins = margins.square()
    return (margins.sum() / len(x),)


def _euclidean(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    one, other = (x.reshape(-1) for x in bottoms)
    return (functional.mse_loss(one, other, reduction="sum") / (2 * len(bottoms[0])),)


def _sigmoid_loss(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    x, target = bottoms[0].reshape(-1), bottoms[1].detach().reshape(-1)
    p, counts = layer.param.loss_param, None
    if p.HasField("ignore_label"):
        counts = target.long() != p.ignore_label
    total = functional.binary_cross_entropy_with_logits(
        x, target, None if counts is None else counts.to(x.dtype), reduction="sum"
    )
    outer = len(bottoms[0])
    shape = (outer, x.numel() // max(outer, 1))
    return (total / _divisor(layer, shape, counts, context, LossParameter.BATCH_SIZE),)


def _contrastive(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    p = layer.param.contrastive_loss_param
    squares = (bottoms[0] - bottoms[1]).flatten(1).square().sum(1)
    if p.legacy_version:
        apart = functional.relu(p.margin - squares)
    else:
        # As Caffe: the gradient divides by the distance, to which 1e-4 is added.
        apart = functional.relu(p.margin - root(squares, 1e-4)).square()
    similar = bottoms[2].detach().reshape(-1).long() != 0
    return (torch.where(similar, squares, apart).sum() / (2 * len(squares)),)


TYPES: dict[str, TorchLayer] = {
    "ContrastiveLoss": TorchLayer(_contrastive),
    "EuclideanLoss": TorchLayer(_euclidean),
    "HingeLoss": TorchLayer(_hinge),
    "InfogainLoss": TorchLayer(_infogain),
    "MultinomialLogisticLoss": TorchLayer(_multinomial),
    "SigmoidCrossEntropyLoss": TorchLayer(_sigmoid_loss),
    "SoftmaxWithLoss": TorchLayer(_softmax_loss),
}

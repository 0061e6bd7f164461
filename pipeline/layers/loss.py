"""Losses and Accuracy: scalars that compare predictions with labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import BlobProto, HingeLossParameter, LossParameter
from pipeline.layers.activation import softmax
from pipeline.layers.base import LayerType, Shape, any_sign, never, not_negative
from pipeline.layers.check import arity, axis_index, fail, need

__all__ = ["FLT_MIN", "LOG_THRESHOLD", "TYPES", "checked_labels", "infogain_matrix", "normalizer"]

_f32 = np.float32
FLT_MIN = np.finfo(np.float32).tiny
LOG_THRESHOLD = _f32(1e-20)


def _scalar(value: float | np.floating) -> np.ndarray:
    return np.asarray(value, dtype=_f32)


def _same_count(layer: Layer, shapes: Sequence[Shape], index: int = 1) -> None:
    need(
        layer,
        prod(shapes[0]) == prod(shapes[index]),
        f"bottoms '{layer.bottoms[0]}' {shapes[0]} and '{layer.bottoms[index]}' "
        f"{shapes[index]} must hold the same number of values",
    )


def _label_count(layer: Layer, shapes: Sequence[Shape], axis: int) -> None:
    """Check that there is one label for each position beside the class axis."""
    x = shapes[0]
    labels = prod(x[:axis]) * prod(x[axis + 1 :])
    need(
        layer,
        prod(shapes[1]) == labels,
        f"bottom '{layer.bottoms[1]}' has shape {shapes[1]}; predictions of shape {x} with the "
        f"classes on axis {axis} need {labels} labels",
    )


def checked_labels(
    layer: Layer, labels: np.ndarray, classes: int, shape: Shape
) -> tuple[np.ndarray, np.ndarray]:
    """Return integer labels in `shape`, and which of them count (are not ignore_label).

    Raises
    ------
    ValueError
        If a label that counts is not 0..classes - 1.
    """
    p = layer.param.accuracy_param if layer.type == "Accuracy" else layer.param.loss_param
    index = labels.astype(np.int64).reshape(shape)
    counts = np.ones(shape, dtype=bool)
    if p.HasField("ignore_label"):
        counts = index != p.ignore_label
    used = index[counts]
    if used.size and not (used.min() >= 0 and used.max() < classes):
        raise ValueError(
            f"bottom '{layer.bottoms[1]}' holds labels {used.min()} to "
            f"{used.max()}; {classes} classes allow 0 to {classes - 1}"
        )
    return np.where(counts, index, 0), counts


def normalizer(layer: Layer, outer: int, inner: int, counted: float, default: int) -> float:
    """Return what a loss is divided by (Caffe's LossParameter.normalization)."""
    p = layer.param.loss_param
    mode = default
    if p.HasField("normalization"):
        mode = p.normalization
    elif p.HasField("normalize"):
        mode = LossParameter.VALID if p.normalize else LossParameter.BATCH_SIZE
    divisors: dict[int, float] = {
        LossParameter.FULL: outer * inner,
        LossParameter.VALID: counted,
        LossParameter.BATCH_SIZE: outer,
        LossParameter.NONE: 1,
    }
    return max(1.0, float(divisors[mode]))


def _by_class(x: np.ndarray, axis: int) -> np.ndarray:
    """Return a view (outer, classes, inner)."""
    return x.reshape(prod(x.shape[:axis]), x.shape[axis], prod(x.shape[axis + 1 :]))


def _pick(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the value of each label's class: (outer, classes, inner) -> (outer, inner)."""
    return np.take_along_axis(values, labels[:, None, :], axis=1)[:, 0, :]


def _accuracy_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(2, 2), tops=(1, 2))
    p = layer.param.accuracy_param
    axis = axis_index(layer, p.axis, len(shapes[0]))
    classes = shapes[0][axis]
    need(layer, 1 <= p.top_k <= classes, f"top_k {p.top_k} must be 1 to {classes}")
    _label_count(layer, shapes, axis)
    return ((), (classes,))[: len(layer.tops)]


def _accuracy(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    """Count a label as found if fewer than top_k other classes score at least as high."""
    p = layer.param.accuracy_param
    scores = _by_class(bottoms[0], p.axis % bottoms[0].ndim)
    outer, classes, inner = scores.shape
    labels, counts = checked_labels(layer, bottoms[1], classes, (outer, inner))
    better = (scores >= _pick(scores, labels)[:, None, :]).sum(axis=1) - 1
    hit = (better < p.top_k) & counts
    tops = [_scalar(hit.sum() / max(counts.sum(), 1))]
    if len(layer.tops) == 2:
        class_hits = np.bincount(labels[hit], minlength=classes)
        class_totals = np.bincount(labels[counts], minlength=classes)
        tops.append((class_hits / np.maximum(class_totals, 1)).astype(_f32))
    return tuple(tops)


def _softmax_loss_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(2, 2), tops=(1, 2))
    _label_count(layer, shapes, axis_index(layer, layer.param.softmax_param.axis, len(shapes[0])))
    return ((), shapes[0])[: len(layer.tops)]


def _softmax_loss(
    layer: Layer, bottoms: Sequence[np.ndarray], device: str
) -> tuple[np.ndarray, ...]:
    x = bottoms[0]
    axis = layer.param.softmax_param.axis % x.ndim
    prob = softmax(x, axis)
    by_class = _by_class(prob, axis)
    outer, classes, inner = by_class.shape
    labels, counts = checked_labels(layer, bottoms[1], classes, (outer, inner))
    logs = np.log(np.maximum(_pick(by_class, labels), FLT_MIN))
    total = -logs[counts].sum(dtype=np.float64)
    loss = total / normalizer(layer, outer, inner, int(counts.sum()), LossParameter.VALID)
    return (_scalar(loss), prob)[: len(layer.tops)]


def infogain_matrix(layer: Layer) -> np.ndarray:
    """Read the matrix H of an InfogainLoss layer from its .binaryproto file."""
    source = layer.param.infogain_loss_param.source
    need(layer, bool(source), "needs a third bottom or infogain_loss_param.source")
    try:
        blob = BlobProto.FromString(Path(source).read_bytes())
    except Exception as error:
        fail(layer, f"cannot read the matrix '{source}' as a BlobProto: {error}")
    return np.array(blob.data, dtype=_f32)


def _infogain_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(2, 3), tops=(1, 2))
    axis = axis_index(layer, layer.param.infogain_loss_param.axis, len(shapes[0]))
    _label_count(layer, shapes, axis)
    size = prod(shapes[2]) if len(shapes) == 3 else infogain_matrix(layer).size
    classes = shapes[0][axis]
    need(
        layer,
        size == classes * classes,
        f"the infogain matrix holds {size} values; {classes} classes need {classes * classes}",
    )
    return ((), shapes[0])[: len(layer.tops)]


def _infogain(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    x = bottoms[0]
    matrix = bottoms[2] if len(bottoms) == 3 else infogain_matrix(layer)
    axis = layer.param.infogain_loss_param.axis % x.ndim
    prob = softmax(x, layer.param.softmax_param.axis)
    by_class = _by_class(prob, axis)
    outer, classes, inner = by_class.shape
    labels, counts = checked_labels(layer, bottoms[1], classes, (outer, inner))
    gains = matrix.reshape(classes, classes)[labels].transpose(0, 2, 1)
    logs = np.log(np.maximum(by_class, LOG_THRESHOLD))
    total = -(gains * logs).sum(axis=1, dtype=np.float64)[counts].sum()
    loss = total / normalizer(layer, outer, inner, int(counts.sum()), LossParameter.VALID)
    return (_scalar(loss), prob)[: len(layer.tops)]


def _item_labels(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """Shape rule of losses with one label for each item and the classes behind axis 0."""
    arity(layer, shapes, bottoms=(2, 2))
    x = shapes[0]
    need(
        layer,
        len(x) >= 2 and prod(shapes[1]) == x[0],
        f"bottom '{layer.bottoms[1]}' has shape {shapes[1]}; predictions of shape {x} need one "
        "label for each item",
    )
    return ((),)


def _multinomial(
    layer: Layer, bottoms: Sequence[np.ndarray], device: str
) -> tuple[np.ndarray, ...]:
    prob = bottoms[0].reshape(len(bottoms[0]), -1, 1)
    labels, _ = checked_labels(layer, bottoms[1], prob.shape[1], (len(prob), 1))
    logs = np.log(np.maximum(_pick(prob, labels), LOG_THRESHOLD))
    return (_scalar(-logs.sum(dtype=np.float64) / len(prob)),)


def _hinge(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    x = bottoms[0].reshape(len(bottoms[0]), -1)
    labels, _ = checked_labels(layer, bottoms[1], x.shape[1], (len(x), 1))
    margins = x.copy()
    np.put_along_axis(margins, labels, -np.take_along_axis(x, labels, axis=1), axis=1)
    margins = margins + _f32(1)
    margins = np.where(margins > 0, margins, _f32(0))  # as Caffe's max(0, x): NaN counts as 0
    if layer.param.hinge_loss_param.norm == HingeLossParameter.L2:
        margins = np.square(margins)
    return (_scalar(margins.sum(dtype=np.float64) / len(x)),)


def _pair_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(2, 2))
    need(layer, len(shapes[0]) >= 1, "the bottoms have no axes")
    _same_count(layer, shapes)
    return ((),)


def _euclidean(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    difference = bottoms[0].reshape(-1) - bottoms[1].reshape(-1)
    total = np.square(difference).sum(dtype=np.float64)
    return (_scalar(total / len(bottoms[0]) / 2),)


def _sigmoid_loss(
    layer: Layer, bottoms: Sequence[np.ndarray], device: str
) -> tuple[np.ndarray, ...]:
    """Cross entropy of sigmoid(x) and targets, in the form that cannot overflow."""
    x, target = bottoms[0].reshape(-1), bottoms[1].reshape(-1)
    p = layer.param.loss_param
    counts = np.ones(x.shape, dtype=bool)
    if p.HasField("ignore_label"):
        counts = target.astype(np.int64) != p.ignore_label
    losses = np.log1p(np.exp(-np.abs(x))) - x * (target - (x >= 0))
    outer = len(bottoms[0])
    divisor = normalizer(
        layer, outer, x.size // max(outer, 1), int(counts.sum()), LossParameter.BATCH_SIZE
    )
    return (_scalar(losses[counts].sum(dtype=np.float64) / divisor),)


def _contrastive_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(3, 3))
    a, b, same = shapes
    need(
        layer,
        len(a) >= 2 and prod(a[2:]) == 1 and a == b,
        f"bottoms '{layer.bottoms[0]}' {a} and '{layer.bottoms[1]}' {b} must both be (items, "
        "channels)",
    )
    need(
        layer,
        prod(same) == a[0],
        f"bottom '{layer.bottoms[2]}' has shape {same}; it must hold "
        f"one value for each of {a[0]} pairs",
    )
    return ((),)


def _contrastive(
    layer: Layer, bottoms: Sequence[np.ndarray], device: str
) -> tuple[np.ndarray, ...]:
    p = layer.param.contrastive_loss_param
    n = len(bottoms[0])
    squares = np.square(bottoms[0] - bottoms[1]).reshape(n, -1).sum(axis=1, dtype=np.float64)
    if p.legacy_version:
        apart = np.maximum(p.margin - squares, 0)
    else:
        apart = np.square(np.maximum(p.margin - np.sqrt(squares), 0))
    similar = bottoms[2].reshape(-1).astype(np.int64) != 0
    return (_scalar(np.where(similar, squares, apart).sum() / n / 2),)


def _loss(shapes: Callable[..., tuple[Shape, ...]], forward: Callable[..., Any]) -> LayerType:
    return LayerType(shapes, forward, never, any_sign, loss=True, measures=True)


TYPES: dict[str, LayerType] = {
    "Accuracy": LayerType(_accuracy_shapes, _accuracy, never, not_negative, measures=True),
    "ContrastiveLoss": _loss(_contrastive_shapes, _contrastive),
    "EuclideanLoss": _loss(_pair_shapes, _euclidean),
    "HingeLoss": _loss(_item_labels, _hinge),
    "InfogainLoss": _loss(_infogain_shapes, _infogain),
    "MultinomialLogisticLoss": _loss(_item_labels, _multinomial),
    "SigmoidCrossEntropyLoss": _loss(_pair_shapes, _sigmoid_loss),
    "SoftmaxWithLoss": _loss(_softmax_loss_shapes, _softmax_loss),
}

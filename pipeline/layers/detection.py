"""The layers of SSD detectors: PriorBox and DetectionOutput.

Boxes are (xmin, ymin, xmax, ymax) relative to the image. After SSD's own layers
(github.com/weiliu89/caffe, branch ssd).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt

import numpy as np

from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import PriorBoxParameter
from pipeline.layers.base import LayerType, Shape, any_sign, never
from pipeline.layers.check import arity, need, rank

__all__ = ["TYPES"]

_f32 = np.float32


def _box_sizes(layer: Layer) -> list[tuple[float, float]]:
    """Return (width, height) in pixels of the boxes at each position, in SSD's order.

    SSD cuts min_size and max_size to whole pixels.
    """
    p = layer.param.prior_box_param
    need(layer, len(p.min_size) > 0 and min(p.min_size) > 0, "prior_box_param needs min_size > 0")
    need(
        layer,
        len(p.max_size) in (0, len(p.min_size)),
        f"prior_box_param has {len(p.min_size)} min_size and {len(p.max_size)} max_size",
    )
    ratios = [1.0]
    for ratio in p.aspect_ratio:
        need(layer, ratio > 0, f"aspect_ratio {ratio:g} must be positive")
        if all(abs(ratio - other) >= 1e-6 for other in ratios):
            ratios += [ratio, 1 / ratio] if p.flip else [ratio]
    sizes: list[tuple[float, float]] = []
    for i, low in enumerate(map(int, p.min_size)):
        sizes.append((low, low))
        if p.max_size:
            need(
                layer,
                p.max_size[i] > p.min_size[i],
                f"max_size {p.max_size[i]:g} must be above min_size {p.min_size[i]:g}",
            )
            middle = sqrt(low * int(p.max_size[i]))
            sizes.append((middle, middle))
        sizes += [(low * sqrt(r), low / sqrt(r)) for r in ratios if abs(r - 1) >= 1e-6]
    return sizes


def _prior_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(2, 2))
    rank(layer, shapes[0], 4)
    rank(layer, shapes[1], 4, 1)
    p = layer.param.prior_box_param
    need(
        layer,
        len(p.variance) in (0, 1, 4),
        f"prior_box_param has {len(p.variance)} variance; give one, or four",
    )
    sized = p.HasField("img_h") or p.HasField("img_w")
    need(layer, not (sized and p.HasField("img_size")), "give img_size or img_h and img_w")
    stepped = p.HasField("step_h") or p.HasField("step_w")
    need(layer, not (stepped and p.HasField("step")), "give step or step_h and step_w")
    boxes = len(_box_sizes(layer)) * (2 if p.denser_prior_boxes else 1)
    return ((1, 2, prod(shapes[0][2:]) * boxes * 4),)


def _prior_box(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    p = layer.param.prior_box_param
    height, width = bottoms[0].shape[2:]
    image_h, image_w = (p.img_h or p.img_size, p.img_w or p.img_size)
    if not (image_h and image_w):
        image_h, image_w = bottoms[1].shape[2:]
    step_h, step_w = p.step_h or p.step, p.step_w or p.step
    if not (step_h and step_w):
        step_h, step_w = image_h / height, image_w / width
    sizes = np.array(_box_sizes(layer), dtype=_f32).astype(np.float64)
    # TextBoxes++: behind each box the same one half a cell lower
    offsets = [p.offset, 1.0] if p.denser_prior_boxes else [p.offset]
    half = sizes.repeat(len(offsets), axis=0) / 2
    boxes = np.empty((height, width, len(half), 4), dtype=np.float64)
    x = ((np.arange(width, dtype=_f32) + _f32(p.offset)) * _f32(step_w)).astype(np.float64)
    rows = np.arange(height, dtype=_f32)[:, None] + np.array(offsets, dtype=_f32)
    y = (rows * _f32(step_h)).astype(np.float64)
    y = np.tile(y, len(sizes))[:, None, :]
    boxes[..., 0] = (x[None, :, None] - half[:, 0]) / image_w
    boxes[..., 1] = (y - half[:, 1]) / image_h
    boxes[..., 2] = (x[None, :, None] + half[:, 0]) / image_w
    boxes[..., 3] = (y + half[:, 1]) / image_h
    if p.clip:
        np.clip(boxes, 0, 1, out=boxes)
    top = np.empty((1, 2, boxes.size), dtype=_f32)
    top[0, 0] = boxes.reshape(-1)
    variance = np.array(p.variance or [0.1], dtype=_f32)
    top[0, 1] = np.resize(variance, boxes.size)
    return (top,)


@dataclass(frozen=True)
class _ClassBoxes:
    """The boxes kept of one class in one image: their scores and places among the priors."""

    label: int
    scores: np.ndarray
    index: np.ndarray


def _decode(loc: np.ndarray, prior: np.ndarray, variance: np.ndarray, code: int) -> np.ndarray:
    """Turn predictions into boxes; all arrays end in an axis of four.

    `variance` is all ones where the predictions already contain it.
    """
    size = prior[..., 2:] - prior[..., :2]
    if code == PriorBoxParameter.CORNER:
        return prior + variance * loc
    if code == PriorBoxParameter.CORNER_SIZE:
        return prior + variance * loc * np.concatenate([size, size], axis=-1)
    scaled = variance * loc
    centre = (prior[..., :2] + prior[..., 2:]) / _f32(2) + scaled[..., :2] * size
    half = np.exp(scaled[..., 2:]) * size / _f32(2)
    return np.concatenate([centre - half, centre + half], axis=-1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.where((sides < 0).any(axis=1), _f32(0), sides[:, 0] * sides[:, 1])


def _overlaps(boxes: np.ndarray, areas: np.ndarray, i: int, others: list[int]) -> np.ndarray:
    """Return intersection over union of box `i` with others."""
    low = np.maximum(boxes[i, :2], boxes[others, :2])
    high = np.minimum(boxes[i, 2:], boxes[others, 2:])
    sides = high - low
    common = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], _f32(0))
    return np.divide(
        common, areas[i] + areas[others] - common, out=np.zeros_like(common), where=common > 0
    )


def _suppress(layer: Layer, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Non-maximum suppression: return the places of the boxes kept, best first."""
    p = layer.param.detection_output_param
    nms = p.nms_param
    floor = p.confidence_threshold if p.HasField("confidence_threshold") else -np.inf
    candidates = np.flatnonzero(scores > _f32(floor))
    candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
    if nms.HasField("top_k") and nms.top_k > -1:
        candidates = candidates[: nms.top_k]
    areas, limit = _areas(boxes), _f32(nms.nms_threshold)
    box_indices: list[int] = []
    for i in candidates.tolist():
        if box_indices and not (_overlaps(boxes, areas, i, box_indices) <= limit).all():
            continue
        box_indices.append(i)
        if nms.eta < 1 and limit > 0.5:
            limit *= _f32(nms.eta)
    return np.array(box_indices, dtype=np.int64)


def _keep_best(class_boxes: list[_ClassBoxes], most: int) -> list[_ClassBoxes]:
    """Return the `most` best boxes of an image over all classes (-1: all)."""
    scores = np.concatenate([f.scores for f in class_boxes]) if class_boxes else np.zeros(0, _f32)
    if most < 0 or scores.size <= most:
        return class_boxes
    owner = np.concatenate([np.full(f.scores.size, k) for k, f in enumerate(class_boxes)])
    place = np.concatenate([np.arange(f.scores.size) for f in class_boxes])
    best = np.argsort(-scores, kind="stable")[:most]
    picked = [(f, place[best][owner[best] == k]) for k, f in enumerate(class_boxes)]
    return [_ClassBoxes(f.label, f.scores[at], f.index[at]) for f, at in picked]


def _detection_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """As in SSD, the number of boxes is unknown beforehand: one stands for it."""
    arity(layer, shapes, bottoms=(3, 4))
    loc, conf, prior = shapes[:3]  # a fourth, the images, is for drawing
    p = layer.param.detection_output_param
    need(layer, p.num_classes > 0, "detection_output_param needs num_classes > 0")
    need(
        layer,
        p.nms_param.nms_threshold >= 0 and 0 < p.nms_param.eta <= 1,
        "nms_param needs nms_threshold >= 0 and 0 < eta <= 1",
    )
    need(
        layer,
        len(prior) == 3 and prior[:2] == (1, 2) and prior[2] % 4 == 0,
        f"bottom '{layer.bottoms[2]}' has shape {prior}; prior boxes have (1, 2, 4 * boxes)",
    )
    priors = prior[2] // 4
    sets = 1 if p.share_location else p.num_classes
    for name, shape, each in (
        (layer.bottoms[0], loc, 4 * sets),
        (layer.bottoms[1], conf, p.num_classes),
    ):
        need(
            layer,
            len(shape) >= 2 and prod(shape[1:]) == priors * each,
            f"bottom '{name}' has shape {shape}; {priors} prior boxes need {priors * each} "
            "values for each image",
        )
    need(
        layer,
        loc[0] == conf[0],
        f"bottoms '{layer.bottoms[0]}' {loc} and "
        f"'{layer.bottoms[1]}' {conf} must hold the same number of images",
    )
    return ((1, 1, 1, 7),)


def _detection_output(
    layer: Layer, bottoms: Sequence[np.ndarray], device: str
) -> tuple[np.ndarray, ...]:
    """Return rows of (image, label, score, xmin, ymin, xmax, ymax), shape (1, 1, rows, 7).

    Where nothing is found in any image, there is one row of -1 for each image.
    """
    p = layer.param.detection_output_param
    prior, variance = bottoms[2].reshape(2, 1, -1, 4)
    if p.variance_encoded_in_target:
        variance = np.ones_like(variance)
    priors = prior.shape[1]
    images = len(bottoms[0])
    sets = 1 if p.share_location else p.num_classes
    loc = bottoms[0].reshape(images, priors, sets, 4).swapaxes(1, 2)
    conf = bottoms[1].reshape(images, priors, p.num_classes)
    rows = []
    for image in range(images):
        boxes = _decode(loc[image], prior, variance, p.code_type)
        class_boxes = []
        for label in range(p.num_classes):
            if label != p.background_label_id:
                scores = conf[image, :, label]
                index = _suppress(layer, boxes[0 if sets == 1 else label], scores)
                class_boxes.append(_ClassBoxes(label, scores[index], index))
        for f in _keep_best(class_boxes, p.keep_top_k):
            block = np.empty((f.index.size, 7), dtype=_f32)
            block[:, 0], block[:, 1], block[:, 2] = image, f.label, f.scores
            block[:, 3:] = boxes[0 if sets == 1 else f.label][f.index]
            rows.append(block)
    top = np.concatenate(rows) if rows else np.empty((0, 7), dtype=_f32)
    if not len(top):
        top = np.full((images, 7), -1, dtype=_f32)
        top[:, 0] = np.arange(images)
    return (top.reshape(1, 1, -1, 7),)


TYPES: dict[str, LayerType] = {
    "DetectionOutput": LayerType(
        _detection_shapes,
        _detection_output,
        never,
        any_sign,
        data_dependent=True,
        detections=True,
    ),
    "PriorBox": LayerType(_prior_shapes, _prior_box, never, any_sign, shape_only=True),
}

"""Layers without bottoms: inputs that the caller supplies, DummyData, Parameter, and marks."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from caffeio.graph import SOURCE_TYPES, Layer
from caffeio.proto.caffe_pb2 import FillerParameter
from pipeline.layers.base import LayerType, Shape, any_sign, never, not_negative
from pipeline.layers.check import arity, blob, expect_blobs, fail, need
from pipeline.layers.fillers import fill

__all__ = ["TYPES", "declared_batch", "declared_shapes"]


def declared_shapes(layer: Layer) -> tuple[Shape | None, ...]:
    """Return the shape that the prototxt gives each top of a source layer.

    None where the data decides: a Data layer's images have the size of its records.

    Raises
    ------
    caffeio.NetError
        If an Input layer gives neither one shape nor one for each top.
    """
    tops = len(layer.tops)
    if layer.type == "Input":
        shapes = [tuple(s.dim) for s in layer.param.input_param.shape]
        if not shapes:
            return (None,) * tops
        need(
            layer,
            len(shapes) in (1, tops),
            f"input_param gives {len(shapes)} shapes for {tops} tops; give one, or one for each",
        )
        return tuple(shapes * tops if len(shapes) == 1 else shapes)
    if layer.type == "MemoryData":
        m = layer.param.memory_data_param
        return ((m.batch_size, m.channels, m.height, m.width), (m.batch_size,))[:tops]
    if layer.type == "ImageData":
        p, transform = layer.param.image_data_param, layer.param.transform_param
        side = transform.crop_size or p.crop_size
        h, w = side or p.new_height, side or p.new_width
        channels = 3 if p.is_color else 1
        return ((p.batch_size, channels, h, w) if h and w else None, (p.batch_size,))[:tops]
    return (None,) * tops


def declared_batch(layers: Sequence[Layer]) -> int:
    """Return the batch size that the first data layer of a net gives, or 0."""
    for layer in layers:
        p = layer.param
        sizes = {
            "Data": p.data_param.batch_size,
            "ImageData": p.image_data_param.batch_size,
            "HDF5Data": p.hdf5_data_param.batch_size,
            "MemoryData": p.memory_data_param.batch_size,
        }
        if layer.type in sizes:
            return sizes[layer.type]
        if layer.type == "Input" and p.input_param.shape:
            return p.input_param.shape[0].dim[0]
    return 0


def _input_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(0, 0), tops=(1, None))
    top_shapes = []
    for top, shape in zip(layer.tops, declared_shapes(layer), strict=True):
        if shape is None:
            fail(
                layer,
                f"the prototxt does not give the shape of blob '{top}'; pass it as an input shape",
            )
        top_shapes.append(shape)
    return tuple(top_shapes)


def _no_forward(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    fail(layer, "its blobs are inputs of the net: the caller gives them")


def _dummy_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(0, 0), tops=(1, None))
    p, tops = layer.param.dummy_data_param, len(layer.tops)
    if p.shape:
        top_shapes: list[Shape] = [tuple(s.dim) for s in p.shape]
    else:
        fields = [list(f) for f in (p.num, p.channels, p.height, p.width)]
        need(
            layer,
            all(len(f) in (1, tops) for f in fields),
            "dummy_data_param needs shape, or num, channels, height and width",
        )
        top_shapes = [tuple(f[i] if len(f) > 1 else f[0] for f in fields) for i in range(tops)]
    need(
        layer,
        len(top_shapes) in (1, tops),
        f"dummy_data_param gives {len(top_shapes)} shapes for {tops} tops; "
        "give one, or one for each",
    )
    need(
        layer,
        len(p.data_filler) in (0, 1, tops),
        f"dummy_data_param gives "
        f"{len(p.data_filler)} data_filler for {tops} tops; give none, one, or one for each",
    )
    return tuple(top_shapes * tops if len(top_shapes) == 1 else top_shapes)


def _dummy(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    shapes = _dummy_shapes(layer, [])
    fillers = list(layer.param.dummy_data_param.data_filler) or [FillerParameter()]
    if len(fillers) == 1:
        fillers *= len(shapes)
    rng = np.random.default_rng(crc32(layer.name.encode()))
    return tuple(fill(layer, f, s, rng) for f, s in zip(fillers, shapes, strict=True))


def _parameter_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(0, 0))
    shape = tuple(layer.param.parameter_param.shape.dim)
    expect_blobs(layer, parameter=shape)
    return (shape,)


def _parameter(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    return (blob(layer, 0, tuple(layer.param.parameter_param.shape.dim)).view(),)


def _indicator_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(0, 0))
    p = layer.param.continuation_indicator_param
    need(
        layer,
        p.time_step > 0 and p.batch_size > 0,
        "continuation_indicator_param needs time_step > 0 and batch_size > 0",
    )
    return ((p.time_step, p.batch_size),)


def _indicator(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    """Return the marks of sequences that all begin at the first step (CRNN)."""
    y = np.ones(_indicator_shapes(layer, [])[0], dtype=np.float32)
    y[0] = 0
    return (y,)


TYPES: dict[str, LayerType] = {
    "ContinuationIndicator": LayerType(_indicator_shapes, _indicator, never, not_negative),
    "DummyData": LayerType(_dummy_shapes, _dummy, never, any_sign),
    "Parameter": LayerType(_parameter_shapes, _parameter, never, any_sign),
    **dict.fromkeys(SOURCE_TYPES, LayerType(_input_shapes, _no_forward, never, any_sign)),
}

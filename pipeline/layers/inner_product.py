"""InnerProduct and Embed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

import kernels
from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import LayerParameter
from pipeline.layers.base import LayerType, Shape, Step, always, any_sign
from pipeline.layers.check import arity, axis_index, blob, expect_blobs, need
from pipeline.layers.folding import Affine, scaled_outputs

__all__ = ["TYPES"]


def _shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    p = layer.param.inner_product_param
    axis = axis_index(layer, p.axis, len(shapes[0]))
    need(layer, p.num_output > 0, "inner_product_param needs num_output > 0")
    inputs = prod(shapes[0][axis:])
    blob_shapes: dict[str, Shape] = {
        "weights": (inputs, p.num_output) if p.transpose else (p.num_output, inputs)
    }
    if p.bias_term:
        blob_shapes["bias"] = (p.num_output,)
    expect_blobs(layer, **blob_shapes)
    return ((*shapes[0][:axis], p.num_output),)


def _forward(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    p = layer.param.inner_product_param
    x = bottoms[0]
    axis = p.axis % x.ndim
    inputs = prod(x.shape[axis:])
    w = (
        blob(layer, 0, (inputs, p.num_output)).T
        if p.transpose
        else blob(layer, 0, (p.num_output, inputs))
    )
    y = kernels.inner_product(
        x.reshape(-1, inputs), w, blob(layer, 1) if p.bias_term else None, device=device
    )
    return (y.reshape(*x.shape[:axis], p.num_output),)


def _embed_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    p = layer.param.embed_param
    need(
        layer,
        p.num_output > 0 and p.input_dim > 0,
        "embed_param needs num_output > 0 and input_dim > 0",
    )
    blob_shapes: dict[str, Shape] = {"weights": (p.input_dim, p.num_output)}
    if p.bias_term:
        blob_shapes["bias"] = (p.num_output,)
    expect_blobs(layer, **blob_shapes)
    return ((*shapes[0], p.num_output),)


def _embed(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    p = layer.param.embed_param
    index = bottoms[0].astype(np.int64)
    if index.size and not (index.min() >= 0 and index.max() < p.input_dim):
        raise ValueError(
            f"bottom '{layer.bottoms[0]}' holds indices {index.min()} to "
            f"{index.max()}; input_dim {p.input_dim} allows 0 to {p.input_dim - 1}"
        )
    y = blob(layer, 0, (p.input_dim, p.num_output))[index]
    return (y + blob(layer, 1) if p.bias_term else y,)


def _per_image(layer: Layer, rank: int) -> bool:
    return layer.param.inner_product_param.axis % rank != 0


def _macs(layer: Layer, bottom: Shape, top: Shape) -> int:
    return prod(top) * (layer.blobs[0].size // top[-1])


def _step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step | None:
    p = layer.param.inner_product_param
    return Step("inner") if p.axis % len(bottoms[0]) == 1 and not p.transpose else None


def _takes_behind(layer: Layer, affine: Affine) -> Layer | None:
    p = layer.param.inner_product_param
    outs = affine.k.size
    if p.axis != 1 or p.num_output != outs:
        return None
    own = layer.blobs[1] if len(layer.blobs) > 1 else None
    # two axes, whatever an old file gave them
    rows = layer.blobs[0].reshape(-1, outs).T if p.transpose else layer.blobs[0].reshape(outs, -1)
    w, bias = scaled_outputs(rows, own, affine)
    param = LayerParameter()
    param.CopyFrom(layer.param)
    param.inner_product_param.bias_term = True
    w = np.ascontiguousarray(w.T) if p.transpose else w
    return replace(layer, param=param, blobs=(w, bias))


def _takes_factors(layer: Layer, k: np.ndarray) -> Layer | None:
    """Multiply the weights of each input channel, which has as many as it has positions."""
    p, w = layer.param.inner_product_param, layer.blobs[0]
    if p.axis != 1 or p.transpose or (w.size // p.num_output) % k.size:
        return None
    rows = w.astype(np.float64).reshape(p.num_output, k.size, -1) * k[:, None]
    scaled = rows.reshape(w.shape).astype(np.float32)
    return replace(layer, blobs=(scaled, *layer.blobs[1:]))


TYPES: dict[str, LayerType] = {
    "Embed": LayerType(_embed_shapes, _embed, always, any_sign),
    "InnerProduct": LayerType(
        _shapes,
        _forward,
        _per_image,
        any_sign,
        _macs,
        _step,
        takes_behind=_takes_behind,
        takes_factors=_takes_factors,
    ),
}

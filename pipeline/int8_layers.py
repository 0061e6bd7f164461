"""The four layer types on integers: quantize the input, sum in int32, dequantize the sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import kernels
from caffeio import Layer
from kernels import OutputStage
from pipeline.layers.convolution import conv_params
from pipeline.layers.pooling import pool_params
from pipeline.quantize import QuantizedLayer

__all__ = ["INT8_FORWARD"]

Int8Forward = Callable[[Layer, QuantizedLayer, np.ndarray, str], np.ndarray]


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def _stage(q: QuantizedLayer) -> OutputStage:
    return OutputStage(q.deq_scale, shift=q.shift)


def _convolution(layer: Layer, q: QuantizedLayer, x: np.ndarray, device: str) -> np.ndarray:
    p = conv_params(layer, x.shape)
    operation = kernels.deconv2d_int8 if q.type == "Deconvolution" else kernels.conv2d_int8
    assert q.weights is not None
    return operation(
        kernels.quantize(x, q.data, device=device),
        q.weights,
        q.bias,
        x_offset=q.data.offset,
        stride=_pair(p.stride),
        pad=_pair(p.pad),
        dilation=_pair(p.dilation),
        group=p.group,
        output=_stage(q),
        device=device,
    )


def _inner_product(layer: Layer, q: QuantizedLayer, x: np.ndarray, device: str) -> np.ndarray:
    assert q.weights is not None
    # a device array is in C order, and knows no -1
    flat = np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x
    flat = flat.reshape((x.shape[0], x.size // max(x.shape[0], 1)))
    return kernels.inner_product_int8(
        kernels.quantize(flat, q.data, device=device),
        q.weights.reshape((-1, flat.shape[1])),  # old files have four axes
        q.bias,
        x_offset=q.data.offset,
        output=_stage(q),
        device=device,
    )


def _pooling(layer: Layer, q: QuantizedLayer, x: np.ndarray, device: str) -> np.ndarray:
    p = pool_params(layer, x.shape)
    # scale_w is 1 for pooling: the scale of the sums is that of the data
    return kernels.avg_pool2d_int8(
        kernels.quantize(x, q.data, device=device),
        p.kernel,
        x_offset=q.data.offset,
        stride=p.stride,
        pad=p.pad,
        ceil_mode=p.ceil_mode,
        output=OutputStage(q.deq_scale),
        device=device,
    )


#: By layer type: ``forward(layer, numbers, bottom, device) -> top``, float32 in and out.
INT8_FORWARD: dict[str, Int8Forward] = {
    "Convolution": _convolution,
    "Deconvolution": _convolution,
    "InnerProduct": _inner_product,
    "Pooling": _pooling,
}

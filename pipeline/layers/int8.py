"""The four layer types on integers: quantize the input, sum in int32, dequantize the sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import kernels
from caffeio import Layer
from caffeio.proto.caffe_pb2 import PoolingParameter
from kernels import OutputStage, QuantParams
from pipeline.layers.convolution import conv_params
from pipeline.layers.pooling import pool_params

__all__ = ["INT8_TYPES", "Int8Type", "QuantizedLayer", "products", "too_wide"]


@dataclass(frozen=True)
class QuantizedLayer:
    """The numbers of one quantized layer.

    Attributes
    ----------
    name, type : str
    data : QuantParams
        Of the layer's input.
    scale_w : float32 array (O,) or (1,)
        Scales of the weights; 1 for a layer without weights.
    weights : int8 array or None
        In Caffe's shape.
    bias : int32 array (O,) or None
        In units of ``deq_scale``.
    shift : uint8 array, as long as `scale_w`
        The accelerator's shift N; 0 means none.
    """

    name: str
    type: str
    data: QuantParams
    scale_w: np.ndarray
    weights: np.ndarray | None
    bias: np.ndarray | None
    shift: np.ndarray

    @property
    def deq_scale(self) -> np.ndarray:
        """Real value of one unit of the int32 sums, float32: scale_d * scale_w."""
        return np.float32(self.data.scale) * self.scale_w

    @property
    def fake_weights(self) -> np.ndarray:
        """The weights quantized and dequantized, float32."""
        assert self.weights is not None
        axis = INT8_TYPES[self.type].channel_axis
        return kernels.dequantize_weights(self.weights, self.scale_w, channel_axis=axis)

    @property
    def fake_bias(self) -> np.ndarray:
        """The bias quantized and dequantized, float32 (O,)."""
        assert self.bias is not None
        return self.bias.astype(np.float32) * self.deq_scale

    def fake_blobs(self, layer: Layer) -> tuple[np.ndarray, ...]:
        """Return a layer's blobs quantized and dequantized, in its shapes.

        Weights that are so already, as those of corrected layers, are shared: they may be large.
        """
        if self.weights is None:
            return layer.blobs
        weights = self.fake_weights
        own = layer.blobs[0]
        if own.dtype == np.float32 and np.array_equal(weights.view("u4"), own.view("u4")):
            weights = own
        if self.bias is None:
            return (weights,)
        return weights, self.fake_bias.reshape(layer.blobs[1].shape)


Int8Forward = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Int8Type:
    """What is known of a layer type on integers.

    Attributes
    ----------
    forward : callable
        ``forward(layer, numbers, bottom, device) -> top``, float32 in and out; with ``raw=True``
        the int32 sums, of layers with weights.
    rule : callable
        ``rule(layer) -> str``: what keeps a layer of the type in float, or nothing.
    weighted : bool
        It has weights.
    per_channel : bool
        Each output channel may have a weight scale of its own.
    channel_axis : int
        The axis of the weights that holds the output channels.
    """

    forward: Int8Forward
    rule: Callable[[Layer], str]
    weighted: bool = True
    per_channel: bool = False
    channel_axis: int = 0


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def _stage(q: QuantizedLayer) -> OutputStage:
    return OutputStage(q.deq_scale, shift=q.shift)


def _convolution(
    layer: Layer, q: QuantizedLayer, x: np.ndarray, device: str, raw: bool = False
) -> np.ndarray:
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
        output=None if raw else _stage(q),
        device=device,
    )


def _inner_product(
    layer: Layer, q: QuantizedLayer, x: np.ndarray, device: str, raw: bool = False
) -> np.ndarray:
    assert q.weights is not None
    # a device array is in C order already, and its reshape takes no -1
    flat = np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x
    flat = flat.reshape((x.shape[0], x.size // max(x.shape[0], 1)))
    return kernels.inner_product_int8(
        kernels.quantize(flat, q.data, device=device),
        q.weights.reshape((-1, flat.shape[1])),  # old files have four axes
        q.bias,
        x_offset=q.data.offset,
        output=None if raw else _stage(q),
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


def _inner_product_rule(layer: Layer) -> str:
    param = layer.param.inner_product_param
    if param.transpose:
        return "transpose is true"
    return "" if param.axis == 1 else f"axis is {param.axis}, not 1"


def _pooling_rule(layer: Layer) -> str:
    param = layer.param.pooling_param
    if param.pool != PoolingParameter.AVE:
        return f"pooling is {PoolingParameter.PoolMethod.Name(param.pool)}, not AVE"
    if any(map(param.HasField, ("pad_l", "pad_r", "pad_t", "pad_b"))):
        return "its padding is given side by side"
    return "global_pooling is true" if param.global_pooling else ""


def _convolution_rule(layer: Layer) -> str:
    param = layer.param.convolution_param
    if any(d != 1 for d in param.dilation):
        return f"dilation is {max(param.dilation)}, not 1"
    if layer.type == "Deconvolution" and param.group != 1:
        return f"group is {param.group}, not 1"
    if layer.blobs and layer.blobs[0].ndim != 4:
        return f"its filter has {layer.blobs[0].ndim} dimensions, not 4"
    return "" if param.axis == 1 else f"axis is {param.axis}, not 1"


#: The layer types that can run on integers.
INT8_TYPES: dict[str, Int8Type] = {
    "Convolution": Int8Type(_convolution, _convolution_rule, per_channel=True),
    "Deconvolution": Int8Type(_convolution, _convolution_rule, per_channel=True, channel_axis=1),
    "InnerProduct": Int8Type(_inner_product, _inner_product_rule),
    "Pooling": Int8Type(_pooling, _pooling_rule, weighted=False),
}


def products(kind: str, weights: np.ndarray) -> int:
    """Return how many products a sum of a layer has, by its type and weights in Caffe's shape."""
    if kind == "InnerProduct":
        return weights.shape[-1]
    return weights.size // max(weights.shape[INT8_TYPES[kind].channel_axis], 1)


def too_wide(kind: str, weights: np.ndarray, bias: np.ndarray | None = None) -> str:
    """Return why the sums of a layer of integers may leave int32; nothing if they cannot.

    Parameters
    ----------
    kind : str
        The layer's type.
    weights : int8 array
        In Caffe's shape.
    bias : int32 array (O,), optional
    """
    if kind == "InnerProduct":  # old files have four axes
        weights = weights.reshape((-1, weights.shape[-1]))
    try:
        kernels.int32_room(weights, bias, INT8_TYPES[kind].channel_axis)
    except OverflowError as error:
        return str(error)
    return ""

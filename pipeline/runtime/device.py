"""Nets on a device of their own: layers whose blobs never leave it.

Each form computes what the layer's NumPy form does, on device arrays. A layer without a form
here runs on the host: its blobs go there and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np

import kernels
from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import EltwiseParameter, LRNParameter
from kernels import OutputStage
from pipeline.errors import PipelineError
from pipeline.layers import layer_type
from pipeline.layers.activation import dropout_scale, natural_log
from pipeline.layers.check import blob
from pipeline.layers.convolution import ConvParams, conv_params, weight_shape
from pipeline.layers.elementwise import factor_shape
from pipeline.layers.folding import batch_norm_affine
from pipeline.layers.int8 import INT8_TYPES, QuantizedLayer
from pipeline.layers.normalization import uses_global_stats
from pipeline.layers.pooling import AVE, pool_params
from pipeline.layers.shape import concat_axis, permute_order, slice_cuts
from pipeline.runtime.identity import Same

__all__ = ["Resident"]

#: Shapes of data that a layer stays set up for: a full batch, and the last.
_SHAPES = 2

Form = Callable[["Resident", Layer, Sequence[Any]], tuple[Any, ...] | None]


class Resident:
    """Runs layers on a device.

    Parameters
    ----------
    device : str
        One for which `kernels.resident` has the parts.

    Attributes
    ----------
    device : str
    parts : module

    Raises
    ------
    PipelineError
        If there is no such device.
    """

    def __init__(self, device: str) -> None:
        if kernels.best_device()[0] != device:
            raise PipelineError(
                f"device '{device}': no device is found, or numba-cuda is not installed: "
                "pip install 'caffe-quant[cuda]', or take --device cpu"
            )
        parts = kernels.resident(device)
        assert parts is not None
        self.device = device
        self.parts: ModuleType = parts
        # by identity: a net may hold layers of one name
        self._device_arrays: dict[tuple[Same[Layer], str], Any] = {}
        self._numbers: dict[Same[QuantizedLayer], QuantizedLayer] = {}
        self._prepared: dict[tuple[Same[Layer], tuple[int, ...]], Any] = {}

    def enter(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the arrays on the device."""
        return {name: self.parts.on_device(x) for name, x in arrays.items()}

    def leave(self, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the arrays on the host."""
        return {name: self.parts.on_host(x) for name, x in arrays.items()}

    def keep(self, layer: Layer, name: str, make: Callable[[], np.ndarray]) -> Any:
        """Return weights that lie on the device; the first time they are made and taken there."""
        key = (Same(layer), name)
        if key not in self._device_arrays:
            self._device_arrays[key] = self.parts.on_device(
                np.ascontiguousarray(make(), np.float32)
            )
        return self._device_arrays[key]

    def numbers(self, q: QuantizedLayer) -> QuantizedLayer:
        """Return a quantized layer's numbers with weights and bias on the device."""
        key = Same(q)
        if key not in self._numbers:
            on_device = self.parts.on_device
            self._numbers[key] = replace(
                q,
                weights=None if q.weights is None else on_device(q.weights),
                bias=None if q.bias is None else on_device(q.bias),
            )
        return self._numbers[key]

    def prepared(
        self, layer: Layer, shape: tuple[int, ...], make: Callable[[tuple[int, ...]], Any]
    ) -> Any:
        """Return a layer set up for a shape; the last few shapes are kept."""
        key = (Same(layer), tuple(shape))
        if key not in self._prepared:
            for old in [k for k in self._prepared if k[0] == key[0]][: -_SHAPES + 1]:
                del self._prepared[old]
            self._prepared[key] = make(key[1])
        return self._prepared[key]

    def run_int8(self, layer: Layer, q: QuantizedLayer, x: Any) -> Any:
        """Return the top of a quantized layer."""
        device_q = self.numbers(q)
        if q.type == "Convolution":
            return _int8_convolution(self, layer, device_q, x)
        return INT8_TYPES[layer.type].forward(layer, device_q, x, self.device)

    def run(self, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...]:
        """Return the tops of a layer."""
        form = _FORMS.get(layer_type(layer).like or layer.type)
        tops = form(self, layer, bottoms) if form else None
        return self._on_host(layer, bottoms) if tops is None else tops

    def _on_host(self, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...]:
        return self.to_device(layer_type(layer).forward(layer, self.to_host(bottoms), "cpu"))

    def to_host(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        """Return arrays of the device on the host."""
        return [self.parts.on_host(x) for x in arrays]

    def to_device(self, arrays: Sequence[np.ndarray]) -> tuple[Any, ...]:
        """Return arrays of the host, in any order, on the device."""
        return tuple(self.parts.on_device(np.asarray(y, order="C")) for y in arrays)


def _map(name: str, numbers: Callable[[Layer], tuple[float, ...]] = lambda layer: ()) -> Form:
    """Return the form of a layer that maps each value."""

    def form(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...]:
        return (r.parts.map_values(bottoms[0], name, *numbers(layer)),)

    return form


def _exp(layer: Layer) -> tuple[float, ...]:
    p = layer.param.exp_param
    log_base = natural_log(layer, p.base)
    return log_base * p.scale, log_base * p.shift


def _log(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...]:
    p = layer.param.log_param
    inner = r.parts.map_values(bottoms[0], "linear", p.scale, p.shift)
    return (r.parts.map_values(inner, "log", 1 / natural_log(layer, p.base)),)


def _power(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...] | None:
    p = layer.param.power_param
    if p.power * p.scale == 0:
        return None  # a constant
    y = r.parts.map_values(bottoms[0], "linear", p.scale, p.shift)
    return (y if p.power == 1 else r.parts.map_values(y, "power", p.power),)


def _dropout(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...]:
    scale = dropout_scale(layer)
    return (bottoms[0] if scale == 1 else r.parts.map_values(bottoms[0], "linear", scale, 0.0),)


def _mish(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...]:
    factor = r.parts.map_values(r.parts.map_values(bottoms[0], "bnll"), "tanh")
    return (r.parts.combine([bottoms[0], factor], "prod", []),)


def _bn(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...] | None:
    affine = layer_type(layer).affine(layer)
    if affine is None:
        return None
    scale = r.keep(layer, "scale", lambda: affine.k)
    shift = r.keep(layer, "shift", lambda: affine.shift)
    return (r.parts.affine(bottoms[0], scale, shift, 1),)


def _prelu(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...]:
    return (r.parts.prelu(bottoms[0], r.keep(layer, "slope", lambda: blob(layer, 0))),)


def _softmax(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...]:
    x = bottoms[0]
    return (r.parts.softmax(x, layer.param.softmax_param.axis % x.ndim),)


def _same(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...]:
    return (bottoms[0],) * len(layer.tops)


def _reshaped(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...]:
    (shape,) = layer_type(layer).shapes(layer, [x.shape for x in bottoms])
    return (bottoms[0].reshape(shape),)


def _concat(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...]:
    return (r.parts.join(bottoms, concat_axis(layer, "concat_dim", bottoms[0].ndim)),)


def _slice(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...]:
    x = bottoms[0]
    axis = concat_axis(layer, "slice_dim", x.ndim)
    cuts = slice_cuts(layer, axis, x.shape[axis])
    return tuple(r.parts.part(x, axis, a, b) for a, b in pairwise(cuts))


def _permute(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...]:
    return (r.parts.permute(bottoms[0], permute_order(layer, bottoms[0].ndim)),)


def _eltwise(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...]:
    p = layer.param.eltwise_param
    kind = EltwiseParameter.EltwiseOp.Name(p.operation).lower()
    return (r.parts.combine(bottoms, kind, list(p.coeff)),)


def _batch_norm(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...] | None:
    if not uses_global_stats(layer):
        return None

    def constants() -> tuple[np.ndarray, np.ndarray]:
        affine = batch_norm_affine(layer.blobs, layer.param.batch_norm_param.eps)
        return affine.k, affine.shift

    scale = r.keep(layer, "scale", lambda: constants()[0])
    shift = r.keep(layer, "shift", lambda: constants()[1])
    return (r.parts.affine(bottoms[0], scale, shift, min(1, bottoms[0].ndim - 1)),)


def _scale(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...] | None:
    if len(bottoms) == 2:
        return None
    p, x = layer.param.scale_param, bottoms[0]
    factor_shape(layer, [x.shape], p)
    scale = r.keep(layer, "scale", lambda: layer.blobs[0].reshape(-1))
    shift = r.keep(layer, "shift", lambda: blob(layer, 1) if p.bias_term else np.zeros(scale.size))
    return (r.parts.affine(x, scale, shift, p.axis % x.ndim),)


def _bias(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...] | None:
    if len(bottoms) == 2:
        return None
    p, x = layer.param.bias_param, bottoms[0]
    factor_shape(layer, [x.shape], p)
    shift = r.keep(layer, "shift", lambda: layer.blobs[0].reshape(-1))
    scale = r.keep(layer, "scale", lambda: np.ones(shift.size))
    return (r.parts.affine(x, scale, shift, p.axis % x.ndim),)


def _convolution(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...] | None:
    p = conv_params(layer, bottoms[0].shape)
    if len(p.kernel) != 2 or p.axis != 1:
        return None
    deconv = layer.type == "Deconvolution"
    channels = bottoms[0].shape[1]
    w = r.keep(layer, "w", lambda: blob(layer, 0, weight_shape(p, channels, deconv)))
    bias = r.keep(layer, "bias", lambda: blob(layer, 1)) if p.bias else None
    if deconv:
        return tuple(kernels.deconv2d(x, w, bias, **_geometry(p), device=r.device) for x in bottoms)

    def packed(shape: tuple[int, ...]) -> Any:
        return kernels.prepare_conv2d(shape, w, bias, **_geometry(p), device=r.device)  # type: ignore[arg-type]

    return tuple(r.prepared(layer, x.shape, packed)(x) for x in bottoms)


def _geometry(p: ConvParams) -> dict[str, Any]:
    """Return the parameters of a convolution over two axes by the kernels' names."""
    both = {"stride": p.stride, "pad": p.pad, "dilation": p.dilation}
    return {**both, "group": p.group}


def _int8_convolution(r: Resident, layer: Layer, q: QuantizedLayer, x: Any) -> Any:
    p, w = conv_params(layer, x.shape), q.weights
    assert w is not None

    def packed(shape: tuple[int, ...]) -> Any:
        return kernels.prepare_conv2d(
            shape,  # type: ignore[arg-type]
            w,
            q.bias,
            x_offset=q.data.offset,
            output=OutputStage(q.deq_scale, shift=q.shift),
            **_geometry(p),
            device=r.device,
        )

    return r.prepared(layer, x.shape, packed)(kernels.quantize(x, q.data, device=r.device))


def _inner_product(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...] | None:
    p, x = layer.param.inner_product_param, bottoms[0]
    axis = p.axis % x.ndim
    rows = math.prod(x.shape[:axis])
    flat = x.reshape((rows, x.size // max(rows, 1)))

    def weights() -> np.ndarray:
        shape = (flat.shape[1], p.num_output) if p.transpose else (p.num_output, flat.shape[1])
        w = blob(layer, 0, shape)
        return w.T if p.transpose else w

    bias = r.keep(layer, "bias", lambda: blob(layer, 1)) if p.bias_term else None
    y = kernels.inner_product(flat, r.keep(layer, "w", weights), bias, device=r.device)
    return (y.reshape((*x.shape[:axis], p.num_output)),)


def _pooling(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...] | None:
    x = bottoms[0]
    p = pool_params(layer, x.shape)
    if len(layer.tops) > 1 or p.method not in (AVE, "MAX") or p.margins is not None:
        return None
    operation = kernels.avg_pool2d if p.method == AVE else kernels.max_pool2d
    y: Any = operation(
        x, p.kernel, stride=p.stride, pad=p.pad, ceil_mode=p.ceil_mode, device=r.device
    )
    return (y,)


def _lrn(r: Resident, layer: Layer, bottoms: Sequence[Any]) -> tuple[Any, ...] | None:
    p = layer.param.lrn_param
    if p.norm_region == LRNParameter.WITHIN_CHANNEL:
        return None
    return (r.parts.across_channels(bottoms[0], p.local_size, p.alpha, p.beta, p.k),)


_FORMS: dict[str, Form] = {
    "AbsVal": _map("abs"),
    "BNLL": _map("bnll"),
    "BN": _bn,
    "BatchNorm": _batch_norm,
    "Bias": _bias,
    "Clip": _map("clip", lambda x: (x.param.clip_param.min, x.param.clip_param.max)),
    "Concat": _concat,
    "Convolution": _convolution,
    "Deconvolution": _convolution,
    "Dropout": _dropout,
    "ELU": _map("elu", lambda x: (x.param.elu_param.alpha,)),
    "Eltwise": _eltwise,
    "Exp": _map("exp", _exp),
    "Flatten": _reshaped,
    "InnerProduct": _inner_product,
    "LRN": _lrn,
    "Log": _log,
    "Mish": _mish,
    "PReLU": _prelu,
    "Permute": _permute,
    "Pooling": _pooling,
    "Power": _power,
    "ReLU": _map("leaky", lambda x: (x.param.relu_param.negative_slope,)),
    "ReLU6": _map("leaky6", lambda x: (x.param.relu6_param.negative_slope,)),
    "Reshape": _reshaped,
    "Scale": _scale,
    "Sigmoid": _map("sigmoid"),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _same,
    "Swish": _map("swish", lambda x: (x.param.swish_param.beta,)),
    "TanH": _map("tanh"),
    "Threshold": _map("threshold", lambda x: (x.param.threshold_param.threshold,)),
}

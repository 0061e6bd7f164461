"""Convolution, Deconvolution, their depthwise spellings, and Im2col, over any number of axes.

Two spatial axes run on the kernels; any other number runs here, tap by tap in NumPy.
Parameters and geometry follow Caffe's base_conv_layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import numpy as np

import kernels
from caffeio.errors import NetError
from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import LayerParameter
from pipeline.layers.base import LayerType, Shape, Step, any_sign, keeps_sign
from pipeline.layers.check import arity, axis_index, blob, expect_blobs, fail, need, same_shape
from pipeline.layers.folding import Affine, scaled_inputs, scaled_outputs

__all__ = [
    "DEPTHWISE",
    "TYPES",
    "ConvParams",
    "check_groups",
    "conv_params",
    "margins",
    "taps",
    "weight_shape",
    "window_counts",
]

#: Types whose group is the number of channels where the prototxt gives none.
DEPTHWISE = frozenset({"DepthwiseConvolution", "ConvolutionDepthwise"})


@dataclass(frozen=True)
class ConvParams:
    """The parameters of a convolution, one entry for each spatial axis.

    Attributes
    ----------
    axis : int
        The channel axis of the bottom; the spatial axes follow it.
    kernel, stride, pad, dilation : tuple of int
    group, outputs : int
    bias : bool
    """

    axis: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]
    group: int
    outputs: int
    bias: bool


def _spread(layer: Layer, name: str, axes: int, default: int | None) -> tuple[int, ...]:
    """Return one value for each spatial axis from ``name``, or ``name_h`` and ``name_w``."""
    p = layer.param.convolution_param
    listed = "kernel_size" if name == "kernel" else name
    values = tuple(getattr(p, listed))
    pair = (f"{name}_h", f"{name}_w")
    if name != "dilation" and any(map(p.HasField, pair)):
        need(layer, axes == 2, f"{pair[0]} and {pair[1]} are for two spatial axes, not {axes}")
        need(layer, not values, f"give {listed} or {pair[0]} and {pair[1]}, not both")
        return getattr(p, pair[0]), getattr(p, pair[1])
    if not values and default is not None:
        return (default,) * axes
    if len(values) not in (1, axes):
        fail(
            layer,
            f"convolution_param gives {listed} {len(values)} times; give it once, or "
            f"once for each of the {axes} spatial axes",
        )
    return values * axes if len(values) == 1 else values


def conv_params(layer: Layer, bottom: Shape) -> ConvParams:
    """Read and check the convolution_param of a layer for a bottom of that shape.

    Raises
    ------
    caffeio.NetError
        If a parameter is missing, given twice, or does not fit the bottom.
    """
    p = layer.param.convolution_param
    need(
        layer,
        not any(map(p.HasField, ("pad_l", "pad_r", "pad_t", "pad_b"))),
        "pad_l, pad_r, pad_t and pad_b are for nets that are read with their weights",
    )
    axis = axis_index(layer, p.axis, len(bottom))
    axes = len(bottom) - axis - 1

    kernel = _spread(layer, "kernel", axes, None)
    stride = _spread(layer, "stride", axes, 1)
    pad = _spread(layer, "pad", axes, 0)
    dilation = _spread(layer, "dilation", axes, 1)
    for name, values in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
        need(layer, min(values, default=1) > 0, f"{name} {values} must be positive")
    group = p.group
    outputs = p.num_output
    if layer.type == "ConvolutionDepthwise":  # which reads neither group nor num_output
        group = outputs = bottom[axis]
    elif layer.type in DEPTHWISE and group in (0, 1):
        group = bottom[axis]
    return ConvParams(axis, kernel, stride, pad, dilation, group, outputs, p.bias_term)


def check_groups(layer: Layer, p: ConvParams, channels: int) -> None:
    """Raise `NetError` unless the groups divide channels and outputs."""
    need(layer, p.outputs > 0, "convolution_param needs num_output > 0")
    need(
        layer,
        p.group > 0 and channels % p.group == 0 and p.outputs % p.group == 0,
        f"group {p.group} must divide the {channels} channels of bottom "
        f"'{layer.bottoms[0]}' and num_output {p.outputs}",
    )


def _sizes(layer: Layer, p: ConvParams, spatial: Shape, deconv: bool) -> Shape:
    rule = kernels.deconv_output_size if deconv else kernels.conv_output_size
    try:
        return tuple(map(rule, spatial, p.kernel, p.stride, p.pad, p.dilation))
    except ValueError as error:
        raise NetError(
            f"{error} (bottom '{layer.bottoms[0]}', spatial size {spatial})", layer.name
        ) from error


def weight_shape(p: ConvParams, channels: int, deconv: bool) -> Shape:
    """Return the shape of the weights, as Caffe stores them."""
    first, second = (channels, p.outputs) if deconv else (p.outputs, channels)
    return (first, second // p.group, *p.kernel)


def _shapes(layer: Layer, shapes: Sequence[Shape], deconv: bool) -> tuple[Shape, ...]:
    arity(layer, shapes, bottoms=(1, None), tops=(len(shapes), len(shapes)))
    same_shape(layer, shapes)
    x = shapes[0]
    p = conv_params(layer, x)
    channels = x[p.axis]
    check_groups(layer, p, channels)
    blob_shapes = {"weights": weight_shape(p, channels, deconv)}
    if p.bias:
        blob_shapes["bias"] = (p.outputs,)
    expect_blobs(layer, **blob_shapes)
    top = (*x[: p.axis], p.outputs, *_sizes(layer, p, x[p.axis + 1 :], deconv))
    return (top,) * len(shapes)


def _conv_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    return _shapes(layer, shapes, deconv=False)


def _deconv_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    return _shapes(layer, shapes, deconv=True)


def _forward(
    layer: Layer, bottoms: Sequence[np.ndarray], device: str, deconv: bool
) -> tuple[np.ndarray, ...]:
    p = conv_params(layer, bottoms[0].shape)
    w = blob(layer, 0, weight_shape(p, bottoms[0].shape[p.axis], deconv))
    bias = blob(layer, 1) if p.bias else None
    tops = []
    for bottom in bottoms:
        x = bottom.reshape(-1, *bottom.shape[p.axis :])
        if len(p.kernel) == 2:
            operation = kernels.deconv2d if deconv else kernels.conv2d
            y = operation(
                x,
                w,
                bias,
                stride=(p.stride[0], p.stride[1]),
                pad=(p.pad[0], p.pad[1]),
                dilation=(p.dilation[0], p.dilation[1]),
                group=p.group,
                device=device,
            )
        else:
            y = (_deconv_nd if deconv else _conv_nd)(x, w, p)
            if bias is not None:
                y += bias.reshape(-1, *(1,) * len(p.kernel))
        tops.append(y.reshape(*bottom.shape[: p.axis], *y.shape[1:]))
    return tuple(tops)


def _conv(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    return _forward(layer, bottoms, device, deconv=False)


def _deconv(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    return _forward(layer, bottoms, device, deconv=True)


def taps(p: ConvParams, size: Shape) -> Iterator[tuple[slice, ...]]:
    """Yield, for each position in the kernel, what it meets in `size` windows."""
    for tap in product(*map(range, p.kernel)):
        starts = [t * d for t, d in zip(tap, p.dilation, strict=True)]
        yield tuple(
            slice(b, b + (n - 1) * s + 1, s) for b, n, s in zip(starts, size, p.stride, strict=True)
        )


def margins(spatial: Shape, p: ConvParams) -> tuple[int, ...]:
    """Return by how much the kernel of a convolution is larger than the padded image."""
    return tuple(
        max(0, d * (k - 1) + 1 - n - 2 * b)
        for n, k, b, d in zip(spatial, p.kernel, p.pad, p.dilation, strict=True)
    )


def _padded(x: np.ndarray, p: ConvParams) -> np.ndarray:
    beyond = margins(x.shape[2:], p)
    return np.pad(x, [(0, 0), (0, 0), *((n, n + m) for n, m in zip(p.pad, beyond, strict=True))])


def window_counts(spatial: Shape, p: ConvParams) -> Shape:
    """Return how many windows there are along each spatial axis of a convolution."""
    return tuple(map(kernels.conv_output_size, spatial, p.kernel, p.stride, p.pad, p.dilation))


def _conv_nd(x: np.ndarray, w: np.ndarray, p: ConvParams) -> np.ndarray:
    n, channels = x.shape[:2]
    size = window_counts(x.shape[2:], p)
    source = _padded(x, p)
    wg = w.reshape(p.group, p.outputs // p.group, channels // p.group, -1)
    y = np.zeros((n, p.group, p.outputs // p.group, prod(size)), np.float32)
    for tap, where in enumerate(taps(p, size)):
        patch = source[:, :, *where]
        y += wg[..., tap] @ patch.reshape(n, p.group, channels // p.group, -1)
    return y.reshape(n, p.outputs, *size)


def _deconv_nd(x: np.ndarray, w: np.ndarray, p: ConvParams) -> np.ndarray:
    n, channels = x.shape[:2]
    size = x.shape[2:]
    full = tuple(
        s * (m - 1) + d * (k - 1) + 1
        for s, m, d, k in zip(p.stride, size, p.dilation, p.kernel, strict=True)
    )
    wg = w.reshape(p.group, channels // p.group, p.outputs // p.group, -1)
    xg = x.reshape(n, p.group, channels // p.group, -1)
    y = np.zeros((n, p.outputs, *full), np.float32)
    for tap, where in enumerate(taps(p, size)):
        part = np.swapaxes(wg[..., tap], 1, 2) @ xg
        y[:, :, *where] += part.reshape(n, p.outputs, *size)
    crop = tuple(slice(b, m - b) for b, m in zip(p.pad, full, strict=True))
    return np.ascontiguousarray(y[:, :, *crop])


def _im2col_shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    arity(layer, shapes)
    x = shapes[0]
    p = conv_params(layer, x)
    size = _sizes(layer, p, x[p.axis + 1 :], deconv=False)
    return ((*x[: p.axis], x[p.axis] * prod(p.kernel), *size),)


def _im2col(layer: Layer, bottoms: Sequence[np.ndarray], device: str) -> tuple[np.ndarray, ...]:
    bottom = bottoms[0]
    p = conv_params(layer, bottom.shape)
    x = bottom.reshape(-1, *bottom.shape[p.axis :])
    size = window_counts(x.shape[2:], p)
    source = _padded(x, p)
    y = np.empty((*x.shape[:2], prod(p.kernel), *size), np.float32)
    for tap, where in enumerate(taps(p, size)):
        y[:, :, tap] = source[:, :, *where]
    return (y.reshape(*bottom.shape[: p.axis], -1, *size),)


def _per_image(layer: Layer, rank: int) -> bool:
    return layer.param.convolution_param.axis % rank != 0


def _conv_macs(layer: Layer, bottom: Shape, top: Shape) -> int:
    return prod(top) * prod(layer.blobs[0].shape[1:])


def _deconv_macs(layer: Layer, bottom: Shape, top: Shape) -> int:
    return prod(bottom) * prod(layer.blobs[0].shape[1:])


def _step(kind: str) -> Callable[[Layer, Sequence[Shape], Shape], Step | None]:
    def step(layer: Layer, bottoms: Sequence[Shape], top: Shape) -> Step | None:
        if len(bottoms) != 1 or len(top) != 4 or not layer.blobs:
            return None
        return Step(kind) if conv_params(layer, bottoms[0]).axis == 1 else None

    return step


def _with_weights(layer: Layer, w: np.ndarray, bias: np.ndarray) -> Layer:
    """Return a layer with other weights and a bias, which it may not have had."""
    param = LayerParameter()
    param.CopyFrom(layer.param)
    param.convolution_param.bias_term = True
    return replace(layer, param=param, blobs=(w, bias))


def _own_bias(layer: Layer) -> np.ndarray | None:
    return layer.blobs[1] if len(layer.blobs) > 1 else None


def _takes_behind(layer: Layer, affine: Affine) -> Layer | None:
    p = layer.param.convolution_param
    if layer.blobs[0].ndim != 4 or p.axis != 1 or p.num_output != affine.k.size:
        return None
    group = p.group if layer.type == "Deconvolution" else 0
    w, bias = scaled_outputs(layer.blobs[0], _own_bias(layer), affine, deconv_group=group)
    return _with_weights(layer, w, bias)


def _takes_before(layer: Layer, affine: Affine) -> Layer | None:
    """Fold a map of the input channels: exact only where nothing is padded."""
    p = layer.param.convolution_param
    if any(p.pad) or p.pad_h or p.pad_w or p.axis != 1:
        return None
    if layer.blobs[0].ndim != 4 or layer.blobs[0].shape[1] * p.group != affine.k.size:
        return None
    w, bias = scaled_inputs(layer.blobs[0], _own_bias(layer), affine, p.group)
    return _with_weights(layer, w, bias)


def _takes_factors(layer: Layer, k: np.ndarray) -> Layer | None:
    """Multiply the weights of each input channel by its factor: padding stays zero."""
    p, w = layer.param.convolution_param, layer.blobs[0]
    deconv = layer.type == "Deconvolution"
    channels = w.shape[0] if deconv else w.shape[1] * p.group
    if w.ndim != 4 or p.axis != 1 or channels != k.size:
        return None
    if deconv:
        scaled = (w.astype(np.float64) * k[:, None, None, None]).astype(np.float32)
    else:
        scaled, _ = scaled_inputs(w, None, Affine(k, np.zeros(k.size)), p.group)
    return replace(layer, blobs=(scaled, *layer.blobs[1:]))


def _depthwise() -> LayerType:
    """Return a fork's depthwise type; nothing is folded into it, as the Ascend tool has it not."""
    return LayerType(
        _conv_shapes, _conv, _per_image, any_sign, _conv_macs, _step("conv"), like="Convolution"
    )


TYPES: dict[str, LayerType] = {
    "Convolution": LayerType(
        _conv_shapes,
        _conv,
        _per_image,
        any_sign,
        _conv_macs,
        _step("conv"),
        takes_behind=_takes_behind,
        takes_before=_takes_before,
        takes_factors=_takes_factors,
        folds_in_training=True,
    ),
    "ConvolutionDepthwise": _depthwise(),
    "Deconvolution": LayerType(
        _deconv_shapes,
        _deconv,
        _per_image,
        any_sign,
        _deconv_macs,
        _step("deconv"),
        takes_behind=_takes_behind,
        takes_factors=_takes_factors,
        folds_in_training=True,
    ),
    "DepthwiseConvolution": _depthwise(),
    "Im2col": LayerType(_im2col_shapes, _im2col, _per_image, keeps_sign),
}

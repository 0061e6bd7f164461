"""From a record of factors to the integers of each layer: weights, bias, scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

import kernels
from caffeio import Layer, Net
from caffeio.record import LayerRecord, Record
from kernels import QuantParams
from pipeline.errors import PipelineError
from pipeline.layers.int8 import INT8_TYPES, QuantizedLayer, products, too_wide

__all__ = [
    "check_width",
    "layer_record",
    "quantize_layer",
    "quantize_layers",
    "reciprocal",
    "weight_scales",
    "with_data",
]

_INT32 = np.iinfo(np.int32)


def reciprocal(scale: float) -> float:
    """Return the float32 to write for ``1 / scale``, as Quant layers hold it.

    The reader computes ``float32(1 / double(value))``. Of the float32 values next to the
    true reciprocal, one that reads back as `scale` is taken where there is one.
    """
    s = np.float32(scale)
    near = np.float32(1.0 / np.float64(s))
    for value in (near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))):
        if np.float32(1.0 / np.float64(value)) == s:
            return float(value)
    return float(near)


def _readable(scale: float) -> float:
    """Return the scale, or the one beside it that its written reciprocal reads back as."""
    return float(np.float32(1.0 / np.float64(np.float32(reciprocal(scale)))))


def with_data(record: LayerRecord, data: QuantParams) -> LayerRecord:
    """Return a record with the scale and offset of other data.

    Of two float32 scales side by side, one in ten has no reciprocal that Quant layers would read
    back as it: the other is recorded, so that record, fakequant and deploy agree to the bit.
    """
    return replace(record, scale_d=_readable(data.scale), offset_d=data.offset)


def weight_scales(deq: np.ndarray, scale_d: float) -> np.ndarray:
    """Return scales of weights whose products with the data's scale, in float32, are `deq`.

    The quotient is rounded, so that its product may be a float32 value beside; then a neighbour
    of it is taken. Where none of them will do, the quotient is returned: compare the products.

    Parameters
    ----------
    deq : float32 array
    scale_d : float
    """
    s = np.float32(scale_d)
    scales = (deq.astype(np.float64) / np.float64(s)).astype(np.float32)
    quotient = scales
    for end in (np.float32(0), np.float32(np.inf)):
        near = quotient
        for _ in range(2):
            near = np.nextafter(near, end)
            scales = np.where((s * scales != deq) & (s * near == deq), near, scales)
    return scales


def layer_record(
    layer: Layer,
    data: QuantParams,
    *,
    channel_wise: bool,
    shape: tuple[int, ...],
    skip_fusion: bool,
) -> LayerRecord:
    """Return the factors of one layer: data as searched, weights by ARQ.

    Parameters
    ----------
    layer : Layer
    data : QuantParams
        Of its input.
    channel_wise : bool
        One weight scale for each output channel.
    shape : tuple of int
        Of its input, batch first.
    skip_fusion : bool
        Whether it was kept from taking BatchNorm and Scale in.

    Raises
    ------
    PipelineError
        If its weights hold NaN or infinity, or are too large.
    """
    scales = np.ones(1, np.float32)
    if layer.blobs:
        scales = _arq(layer, channel_wise)
    channels, height, width = (*shape[1:], 1, 1, 1)[:3]
    return LayerRecord(
        scale_d=_readable(data.scale),
        offset_d=data.offset,
        scale_w=tuple(float(s) for s in scales),
        offset_w=(0,) * scales.size,
        shift_bit=(),
        channels=channels,
        height=height,
        width=width,
        skip_fusion=skip_fusion,
    )


def _arq(layer: Layer, channel_wise: bool) -> np.ndarray:
    """Return the scales of a layer's weights, float32 (O,) or (1,)."""
    try:
        return kernels.arq(
            layer.blobs[0], INT8_TYPES[layer.type].channel_axis if channel_wise else None
        )
    except ValueError as error:
        raise PipelineError(
            f"layer '{layer.name}': {error}; mend the weights or name the layer in skip_layers"
        ) from None


def check_width(layer: Layer, channel_wise: bool) -> None:
    """Raise, before anything is observed, if a layer is too wide for int32 sums.

    That its bias does not fit beside them is known only with the scale of its data, and raised by
    `quantize_layer`.

    Parameters
    ----------
    layer : Layer
        Float, already fused; without blobs there is nothing to check yet.
    channel_wise : bool
        One weight scale for each output channel.

    Raises
    ------
    PipelineError
        Naming the layer, how many products a sum has, how many always fit, and the cure.
    """
    if not layer.blobs or products(layer.type, layer.blobs[0]) <= kernels.ANY_PRODUCTS:
        return
    axis, w = INT8_TYPES[layer.type].channel_axis, layer.blobs[0]
    weights = kernels.quantize_weights(w, _arq(layer, channel_wise), channel_axis=axis)
    if why := too_wide(layer.type, weights):
        raise PipelineError(f"layer '{layer.name}': {why}: name it in skip_layers")


def quantize_layer(layer: Layer, record: LayerRecord) -> QuantizedLayer:
    """Quantize the weights and bias of a layer by its factors.

    Parameters
    ----------
    layer : Layer
        Float, already fused.
    record : LayerRecord

    Raises
    ------
    PipelineError
        If the factors do not fit the layer, or its bias or a sum may leave int32.
    """
    data = QuantParams(record.scale_d, record.offset_d)
    scale_w = np.array(record.scale_w, np.float32)
    shift = np.array(record.shift_bit or (0,) * scale_w.size, np.uint8)
    if not layer.blobs:
        if not scale_w.size:
            scale_w, shift = np.ones(1, np.float32), np.zeros(1, np.uint8)
        return QuantizedLayer(layer.name, layer.type, data, scale_w, None, None, shift)
    if not scale_w.size:
        raise PipelineError(f"layer '{layer.name}': its record has no scale_w, but it has weights")
    kind = INT8_TYPES[layer.type]
    axis = kind.channel_axis
    if scale_w.size > 1 and not kind.per_channel:
        raise PipelineError(
            f"layer '{layer.name}': its record has {scale_w.size} scale_w, but {layer.type} has "
            "one for all its weights"
        )
    try:
        weights = kernels.quantize_weights(layer.blobs[0], scale_w, channel_axis=axis)
    except ValueError as error:
        raise PipelineError(f"layer '{layer.name}': its record does not fit: {error}") from None
    bias = None
    if len(layer.blobs) > 1:
        bias = _quantize_bias(layer, np.float32(data.scale) * scale_w)
    if why := too_wide(layer.type, weights, bias):
        raise PipelineError(f"layer '{layer.name}': {why}: name it in skip_layers")
    return QuantizedLayer(layer.name, layer.type, data, scale_w, weights, bias, shift)


def _quantize_bias(layer: Layer, deq_scale: np.ndarray) -> np.ndarray:
    """Return ``round(bias / deq_scale)`` as int32."""
    steps = layer.blobs[1].reshape(-1).astype(np.float64) / deq_scale.astype(np.float64)
    bias = np.trunc(steps + np.copysign(0.5, steps))
    outside = np.flatnonzero(~((bias >= _INT32.min) & (bias <= _INT32.max)))
    if outside.size:
        raise PipelineError(
            f"layer '{layer.name}': the bias of channel {outside[0]} is {steps[outside[0]]:.3g} "
            "steps, beyond int32; name the layer in skip_layers to keep it in float"
        )
    return bias.astype(np.int32)


def quantize_layers(net: Net, record: Record) -> Mapping[str, QuantizedLayer]:
    """Quantize every layer that a record names.

    Parameters
    ----------
    net : Net
        Fused.
    record : Record

    Returns
    -------
    mapping of layer name to QuantizedLayer

    Raises
    ------
    PipelineError
        If the record names a layer that the net has not, or does not fit one.
    """
    by_name = {layer.name: layer for layer in net.layers}
    missing = [name for name in record.layers if name not in by_name]
    if missing:
        raise PipelineError(
            f"the record names layer '{missing[0]}', which net '{net.name}' does not have"
        )
    return {name: quantize_layer(by_name[name], record.layers[name]) for name in record.layers}

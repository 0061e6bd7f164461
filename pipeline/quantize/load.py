"""Reading a quantized model back: from a fakequant or deploy net to the integer net."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

import caffeio
from caffeio import Layer, Net, NetError, Value
from caffeio.proto import caffe_pb2
from kernels import QuantParams, quantize_weights
from pipeline.layers.int8 import INT8_TYPES, QuantizedLayer, too_wide
from pipeline.layers.quant import quant_params
from pipeline.manifest import check_unchanged
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.integers import weight_scales

__all__ = ["integers_of", "load_quantized"]

_INT32 = np.iinfo(np.int32)


def load_quantized(prototxt: str | Path, caffemodel: str | Path, *, device: str = "cpu") -> Int8Net:
    """Read a fakequant or a deploy model as the integer net that it was written from.

    Parameters
    ----------
    prototxt, caffemodel : path-like
        ``<prefix>_deploy_model.prototxt`` and ``<prefix>_deploy_weights.caffemodel``, or the two
        ``_fake_quant_`` files.
    device : str
        One of `kernels.DEVICES`.

    Returns
    -------
    Int8Net
        Its results are equal, bit for bit, to those of the net that was written.

    Raises
    ------
    caffeio.CaffeFileError, caffeio.NetError
        If a file cannot be read, or is not as the run that wrote it says in its manifest; or they
        are no quantized model: the layer is named.

    Examples
    --------
    >>> int8 = pipeline.load_quantized(
    ...     "quantized/net_deploy_model.prototxt", "quantized/net_deploy_weights.caffemodel"
    ... )  # doctest: +SKIP
    """
    check_unchanged(prototxt, caffemodel)
    net, layers = integers_of(caffeio.read_net(prototxt, caffemodel))
    return Int8Net.of_layers(net, layers, device=device)


def integers_of(net: Net) -> tuple[Net, dict[str, QuantizedLayer]]:
    """Take the Quant and DeQuant layers out of a net.

    Parameters
    ----------
    net : Net
        As `fakequant_net` or `deploy_net` make it, with weights.

    Returns
    -------
    net : Net
        Without them; weights and bias are floats, those that the integers stand for.
    layers : dict of layer name to QuantizedLayer

    Raises
    ------
    caffeio.NetError
        If a layer reads a Quant layer but no DeQuant layer follows it, the other way round, or
        the numbers do not fit together.
    """
    quants = {
        link.writes[0]: i
        for i, (layer, link) in enumerate(zip(net.layers, net.links, strict=True))
        if layer.type == "Quant"
    }
    dequants: dict[Value, Layer] = {
        link.reads[0]: layer
        for layer, link in zip(net.layers, net.links, strict=True)
        if layer.type == "DeQuant"
    }
    if not quants:
        raise NetError(f"net '{net.name}' has no Quant layers: it is not a quantized model")
    kept: list[Layer] = []
    found: dict[str, QuantizedLayer] = {}
    for layer, link in zip(net.layers, net.links, strict=True):
        if layer.type in ("Quant", "DeQuant"):
            continue
        place = quants.get(link.reads[0]) if link.reads else None
        if place is None:
            _expect_float(layer)
            kept.append(layer)
            continue
        quant = net.layers[place]
        dequant = dequants.pop(link.writes[0], None)
        if dequant is None:
            raise NetError(f"reads '{quant.name}', but no DeQuant layer follows it", layer.name)
        if layer.type not in INT8_TYPES:
            raise NetError(f"reads '{quant.name}', but {layer.type} has no INT8 form", layer.name)
        found[layer.name] = _quantized(layer, quant_params(quant), dequant)
        kept.append(_plain(layer, found[layer.name], quant.bottoms, dequant.tops))
    if dequants:
        left = next(iter(dequants.values()))
        raise NetError("no layer before it reads a Quant layer", left.name)
    return net.with_layers(tuple(kept)), found


def _expect_float(layer: Layer) -> None:
    for blob in layer.blobs:
        if blob.dtype != np.float32:
            raise NetError(f"has {blob.dtype} weights, but reads no Quant layer", layer.name)


def _plain(
    layer: Layer, q: QuantizedLayer, bottoms: tuple[str, ...], tops: tuple[str, ...]
) -> Layer:
    """Return the layer in float, in the place of itself and the two around it."""
    param = caffe_pb2.LayerParameter()
    param.CopyFrom(layer.param)
    param.bottom[:], param.top[:] = bottoms, tops
    return replace(layer, bottoms=bottoms, tops=tops, param=param, blobs=q.fake_blobs(layer))


def _quantized(layer: Layer, data: QuantParams, dequant: Layer) -> QuantizedLayer:
    deq, shift = _dequantization(dequant)
    scale_w = _weight_scales(dequant, deq, data.scale)
    if not layer.blobs:
        return QuantizedLayer(layer.name, layer.type, data, scale_w, None, None, shift)
    weights = layer.blobs[0]
    if weights.dtype == np.float32:
        axis = INT8_TYPES[layer.type].channel_axis
        try:
            weights = quantize_weights(weights, scale_w, channel_axis=axis)
        except ValueError as error:
            raise NetError(f"does not fit '{dequant.name}': {error}", layer.name) from None
    elif weights.dtype != np.int8:
        raise NetError(f"has {weights.dtype} weights; int8 or float32 is needed", layer.name)
    bias = _bias(layer, deq)
    if why := too_wide(layer.type, weights, bias):
        raise NetError(why, layer.name)
    return QuantizedLayer(layer.name, layer.type, data, scale_w, weights, bias, shift)


def _bias(layer: Layer, deq: np.ndarray) -> np.ndarray | None:
    """Return the bias in units of `deq`, int32."""
    if len(layer.blobs) < 2:
        return None
    bias = layer.blobs[1].reshape(-1)
    if bias.dtype == np.int32:
        return bias
    if bias.dtype != np.float32:
        raise NetError(f"has a bias of {bias.dtype}; int32 or float32 is needed", layer.name)
    steps = np.rint(bias.astype(np.float64) / deq.astype(np.float64))
    if not ((steps >= _INT32.min) & (steps <= _INT32.max)).all():
        raise NetError("has a bias that is beyond int32 in units of its sums", layer.name)
    return steps.astype(np.int32)


def _dequantization(dequant: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Return deq_scale float32 (C,) and shift uint8 (C,) of a DeQuant layer."""
    blobs: Mapping[int, np.ndarray] = dict(enumerate(b.reshape(-1) for b in dequant.blobs))
    if len(blobs) == 1 and blobs[0].dtype == np.uint64:
        bits = blobs[0]
        deq = (bits & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
        shift = ((bits >> np.uint64(32)) & np.uint64(0xFF)).astype(np.uint8)
    elif len(blobs) == 3 and all(b.dtype == np.float32 for b in blobs.values()):
        deq, shift = blobs[0], blobs[1].astype(np.uint8)
    else:
        raise NetError(
            "holds neither packed parameters (one uint64 blob) nor deq_scale, shift_bit and "
            "offset_w (three float blobs)",
            dequant.name,
        )
    if not (np.isfinite(deq) & (deq > 0)).all():
        raise NetError("has a deq_scale that is not a positive number", dequant.name)
    return deq, shift


def _weight_scales(dequant: Layer, deq: np.ndarray, scale_d: float) -> np.ndarray:
    """Return scales of weights that give `deq` with the data's; raise if there are none."""
    scale_w = weight_scales(deq, scale_d)
    off = np.flatnonzero(np.float32(scale_d) * scale_w != deq)
    if off.size:
        raise NetError(
            f"the deq_scale of channel {off[0]}, {deq[off[0]]:.9g}, is no product of the data's "
            f"scale {scale_d:.9g} and a float32 weight scale",
            dequant.name,
        )
    return scale_w

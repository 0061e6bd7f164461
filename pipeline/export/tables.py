"""Scales in the text forms of other runtimes, and the integers themselves in .npz and JSON."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from caffeio import Net
from pipeline.layers.int8 import QuantizedLayer

__all__ = ["asymmetric_layers", "ncnn_table", "npz_arrays", "tensorrt_cache"]

Layers = Mapping[str, QuantizedLayer]


def asymmetric_layers(layers: Layers) -> tuple[str, ...]:
    """Return the layers whose data has a range that a symmetric scale cannot say.

    A range that begins at 0 (offset -128), as after ReLU, can be: by its upper end.
    """
    return tuple(name for name, q in layers.items() if q.data.offset not in (0, -128))


def _largest(q: QuantizedLayer) -> float:
    """Return the magnitude that 127 shall stand for; a symmetric scale stays what it is."""
    if q.data.offset == 0:
        return 127 * q.data.scale
    low, high = q.data.range
    return max(abs(low), abs(high))


def ncnn_table(net: Net, layers: Layers) -> str:
    """Return ncnn's calibration table: ``127 / largest`` of weights and data.

    A line ``<layer>_param_0 scale ...`` for the weights, one scale for each output channel of a
    convolution and one for an InnerProduct; then a line ``<layer> scale`` for the data. ncnn takes
    Convolution, depthwise and not, and InnerProduct; its integers are symmetric.

    Parameters
    ----------
    net : Net
        Fused.
    layers : mapping of layer name to QuantizedLayer
    """
    weights, data = [], []
    for layer in net.layers:
        q = layers.get(layer.name)
        if q is None or layer.type not in ("Convolution", "InnerProduct"):
            continue
        count = layer.param.convolution_param.num_output
        group = layer.param.convolution_param.group
        scales = 1 / q.scale_w.astype(np.float64)
        if layer.type == "InnerProduct":
            count = layer.param.inner_product_param.num_output
        channels = np.broadcast_to(scales, (count,))
        if layer.type == "Convolution" and group > 1 and group == count:
            channels = channels.reshape(group, -1)[:, 0]
        weights.append(f"{layer.name}_param_0 {' '.join(f'{s:.9g}' for s in channels)}")
        data.append(f"{layer.name} {127 / _largest(q):.9g}")
    return "".join(f"{line}\n" for line in (*weights, *data))


def tensorrt_cache(net: Net, layers: Layers) -> str:
    """Return a calibration cache of TensorRT: the scale of each blob that a quantized layer reads.

    A head, then a line ``<blob>: <scale>`` each, the scale (largest / 127) as the eight hexadecimal
    digits of its float32.

    Parameters
    ----------
    net : Net
        Fused; blobs are named as in the prototxt.
    layers : mapping of layer name to QuantizedLayer
    """
    scales: dict[str, float] = {}
    for layer in net.layers:
        if layer.name in layers:
            blob, scale = layer.bottoms[0], _largest(layers[layer.name]) / 127
            scales[blob] = max(scales.get(blob, 0.0), scale)
    lines = ["TRT-8601-EntropyCalibration2"]
    lines += [f"{blob}: {struct.pack('>f', scale).hex()}" for blob, scale in scales.items()]
    return "".join(f"{line}\n" for line in lines)


def npz_arrays(net: Net, layers: Layers) -> dict[str, np.ndarray]:
    """Return the integers of all layers as arrays: what any other tool can take.

    ``<layer>/weights`` int8, ``<layer>/bias`` int32, ``<layer>/scale_w``, ``<layer>/scale_d``,
    ``<layer>/offset_d``, ``<layer>/shift``; and ``index``, a text in JSON, with each layer's type
    and bottom: real data is ``(q - offset_d) * scale_d``, a real weight ``w * scale_w``.
    """
    arrays: dict[str, np.ndarray] = {}
    index: list[dict[str, Any]] = []
    for layer in net.layers:
        q = layers.get(layer.name)
        if q is None:
            continue
        parts = {
            "weights": q.weights, "bias": q.bias, "scale_w": q.scale_w,
            "scale_d": np.float32(q.data.scale), "offset_d": np.int32(q.data.offset),
            "shift": q.shift,
        }  # fmt: skip
        for key, value in parts.items():
            if value is not None:
                arrays[f"{layer.name}/{key}"] = np.asarray(value)
        index.append({"layer": layer.name, "type": layer.type, "bottom": layer.bottoms[0]})
    arrays["index"] = np.array(json.dumps(index))
    return arrays

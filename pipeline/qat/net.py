"""Training nets with ActivationQAT and WeightQAT layers, for those who train in their own Caffe.

In such a net a quantized layer reads its data through ``<layer>_act_qat``, which learns clip_max
and clip_min (one for all layers that read the same data alike), and ``<layer>_weight_qat``, which
passes the data on and, before that, writes the float weights of its second blob, quantized and
dequantized, to its first, which the layer shares with it by the parameter's name.

Everything here works on plain nets: nothing is trained, and PyTorch is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

import kernels
from caffeio import Layer, Net
from caffeio.errors import NetError
from caffeio.proto import caffe_pb2
from kernels import QuantParams
from pipeline.errors import PipelineError
from pipeline.qat.plan import DataPlan, FakePlan

__all__ = [
    "has_qat",
    "merge_phases",
    "object_layers",
    "qat_net",
    "ranges_of",
    "shared_name",
    "without_qat",
]

_TYPES = ("ActivationQAT", "WeightQAT")
#: What may stand in the name of a file that Caffe makes where it is started.
_PLAIN = re.compile(r"[^A-Za-z0-9._-]")
#: Characters of it that are a layer's: file systems take 255 bytes in all.
_LONGEST = 200


def has_qat(net: Net) -> bool:
    """Whether a net has ActivationQAT or WeightQAT layers."""
    return any(layer.type in _TYPES for layer in net.layers)


def qat_net(net: Net, plan: FakePlan) -> Net:
    """Return a training net with the layers of quantization-aware training put in.

    Parameters
    ----------
    net : Net
        Float, BatchNorm and Scale folded.
    plan : FakePlan

    Raises
    ------
    PipelineError
        If a layer that is to be quantized shares its weights with another.
    """
    by_layer = {name: data for data in plan.data for name in data.layers}
    activation_names: set[str] = set()
    paths: set[str] = set()
    out: list[Layer] = []
    for layer in net.layers:
        data = by_layer.get(layer.name)
        if data is None:
            out.append(layer)
            continue
        act = f"{data.layers[0]}_act_qat"
        if act not in activation_names:
            activation_names.add(act)
            out.append(_activation(act, layer.bottoms[0], data, _record_path(act, paths)))
        bottom = act
        if layer.name in plan.weights:
            bottom = f"{layer.name}_weight_qat"
            scale_axis = plan.weights[layer.name].scale_axis
            out.append(_weight(layer, bottom, act, scale_axis is not None))
        out.append(_rewired(layer, bottom, shared=layer.name in plan.weights))
    return net.with_layers(tuple(out))


def merge_phases(train: Net, test: Net) -> Net:
    """Return one net with the layers of both phases, those of one phase marked by include rules.

    Parameters
    ----------
    train, test : Net
        Layers that are alike are one; another gets a rule for its phase if it has none, as those
        of two files have.
    """
    layers: list[Layer] = []
    rest = list(test.layers)
    for layer in train.layers:
        alike = next((i for i, x in enumerate(rest) if _same(x, layer)), None)
        if alike is None:
            layers.append(_only_in(layer, "TRAIN"))
            continue
        layers += [_only_in(x, "TEST") for x in rest[:alike]]
        layers.append(layer)
        del rest[: alike + 1]
    return train.with_layers((*layers, *(_only_in(x, "TEST") for x in rest)))


def _only_in(layer: Layer, phase: str) -> Layer:
    if layer.param.include or layer.param.exclude:
        return layer
    param = caffe_pb2.LayerParameter()
    param.CopyFrom(layer.param)
    param.include.add().phase = caffe_pb2.TRAIN if phase == "TRAIN" else caffe_pb2.TEST
    return replace(layer, param=param)


def without_qat(net: Net) -> Net:
    """Return the net without its QAT layers: each layer with its float master weights.

    Parameters
    ----------
    net : Net
        With weights or without.

    Raises
    ------
    caffeio.NetError
        If the net has none, or one does not say what it belongs to.
    """
    source: dict[str, str] = {}
    masters: dict[str, np.ndarray | None] = {}
    layers = []
    for layer in net.layers:
        if layer.type == "ActivationQAT":
            source[layer.tops[0]] = layer.bottoms[0]
        elif layer.type == "WeightQAT":
            source[layer.tops[0]] = source.get(layer.bottoms[0], layer.bottoms[0])
            masters[shared_name(layer)] = layer.blobs[1] if layer.blobs else None
        else:
            layers.append(_restored(layer, source, masters))
    if not source:
        raise NetError(f"net '{net.name}' has no ActivationQAT or WeightQAT layers")
    return net.with_layers(tuple(layers))


def ranges_of(net: Net) -> dict[str, QuantParams]:
    """Return scale and offset of the data of each layer that ActivationQAT layers name.

    Raises
    ------
    caffeio.NetError
        If such a layer names no object_layer.
    PipelineError
        If a range is empty or not finite.
    """
    names = {layer.name for layer in net.layers}
    ranges = {}
    for layer in net.layers:
        if layer.type != "ActivationQAT":
            continue
        param = layer.param.retrain_data_quant_param
        high, low = (float(b.reshape(-1)[0]) for b in layer.blobs)
        clips = kernels.guard_clips(
            kernels.ClipRange(high, low, high, low), fixed_min=param.fixed_min
        )
        try:
            params = kernels.ulq_grid(clips.high, min(clips.low, 0.0)).params()
        except ValueError as error:
            raise PipelineError(f"layer '{layer.name}': {error}") from None
        for name in object_layers(layer, names):
            ranges[name] = params
    return ranges


def object_layers(layer: Layer, names: set[str]) -> list[str]:
    """Return the layers that object_layer names, joined by "-", which may occur in names too."""
    text = layer.param.retrain_data_quant_param.object_layer
    parts, layer_names = text.split("-"), []
    while parts:
        for end in range(len(parts), 0, -1):
            name = "-".join(parts[:end])
            if name in names:
                layer_names.append(name)
                parts = parts[end:]
                break
        else:
            raise NetError(f"object_layer '{text}' names no layers of the net", layer.name)
    if not layer_names:
        raise NetError("names no object_layer", layer.name)
    return layer_names


def _record_path(name: str, taken: set[str]) -> str:
    """Return a file of its own for an ActivationQAT layer, which Caffe makes where it is started.

    The layer creates or empties it, and reads it back at its first forward.
    """
    plain = _PLAIN.sub("_", name)[:_LONGEST]
    path, number = f"{plain}_record.txt", 1
    while path in taken:
        number += 1
        path = f"{plain}_{number}_record.txt"
    taken.add(path)
    return path


def _activation(name: str, bottom: str, data: DataPlan, path: str) -> Layer:
    # with ifmr_init the CPU code there takes the clip_min that it is given, which must be 0
    high, low = data.clips or (3.0, 0.0)
    low = 0.0 if data.fixed_min else low
    param = caffe_pb2.LayerParameter(
        name=name,
        type="ActivationQAT",
        bottom=[bottom],
        top=[name],
        param=[caffe_pb2.ParamSpec(lr_mult=1, decay_mult=0)] * 2,
        retrain_data_quant_param=caffe_pb2.RetrainDataQuantParameter(
            clip_max=high,
            clip_min=low,
            ifmr_init=data.clips is None,
            fixed_min=data.fixed_min,
            object_layer="-".join(data.layers),
            record_file_path=path,
        ),
    )
    blobs = tuple(np.array([v], np.float32) for v in (high, low))
    return Layer(name, "ActivationQAT", (bottom,), (name,), param, blobs)


def _weight(layer: Layer, name: str, bottom: str, channel_wise: bool) -> Layer:
    spec = _spec(layer, 0)
    if spec.name:
        raise PipelineError(
            f"layer '{layer.name}' shares its weights as '{spec.name}'; name it in skip_layers"
        )
    w = layer.blobs[0]
    if layer.type == "InnerProduct":  # old files give it four axes; the sharing is strict
        w = w.reshape(layer.param.inner_product_param.num_output, -1)
    own, other = caffe_pb2.ParamSpec(), caffe_pb2.ParamSpec()
    own.CopyFrom(spec)
    other.CopyFrom(spec)
    own.name = f"{layer.name}_weight"
    param = caffe_pb2.LayerParameter(
        name=name,
        type="WeightQAT",
        bottom=[bottom],
        top=[name],
        param=[own, other],
        retrain_weight_quant_param=caffe_pb2.RetrainWeightQuantParameter(
            cout=w.shape[0],  # the blob's axes as they are stored, of a Deconvolution too
            cin=w.shape[1],
            channel_wise=channel_wise,
            layer_type=layer.type,
        ),
    )
    if w.ndim == 4:  # its blobs have two axes unless both are there
        p = param.retrain_weight_quant_param
        p.h, p.w = w.shape[2:]
    return Layer(name, "WeightQAT", (bottom,), (name,), param, (w, w))


def _rewired(layer: Layer, bottom: str, *, shared: bool) -> Layer:
    """Return the layer reading `bottom`; its weights are then those of its WeightQAT layer."""
    param = caffe_pb2.LayerParameter()
    param.CopyFrom(layer.param)
    param.bottom[:] = [bottom]
    if shared:
        spec = _spec(layer, 0)
        spec.name = f"{layer.name}_weight"
        rest = list(layer.param.param)[1:]
        del param.param[:]
        param.param.extend([spec, *rest])
    blobs = layer.blobs
    if shared and layer.type == "InnerProduct":
        blobs = (blobs[0].reshape(layer.param.inner_product_param.num_output, -1), *blobs[1:])
    return replace(layer, bottoms=(bottom,), param=param, blobs=blobs)


def _spec(layer: Layer, index: int) -> caffe_pb2.ParamSpec:
    spec = caffe_pb2.ParamSpec()
    if index < len(layer.param.param):
        spec.CopyFrom(layer.param.param[index])
    return spec


def shared_name(layer: Layer) -> str:
    """Return the name of the parameter that a WeightQAT layer shares with the layer it serves."""
    name = _spec(layer, 0).name
    if not name:
        raise NetError("its first param has no name, so no layer shares its weights", layer.name)
    return name


def _restored(
    layer: Layer, source: Mapping[str, str], masters: Mapping[str, np.ndarray | None]
) -> Layer:
    bottoms = tuple(source.get(b, b) for b in layer.bottoms)
    param = caffe_pb2.LayerParameter()
    param.CopyFrom(layer.param)
    param.bottom[:] = bottoms
    blobs = layer.blobs
    for spec in param.param:
        if spec.name in masters:
            master = masters[spec.name]
            if master is not None and blobs:
                blobs = (master.reshape(blobs[0].shape), *blobs[1:])
            spec.ClearField("name")
    return replace(layer, bottoms=bottoms, param=param, blobs=blobs)


def _same(a: Layer, b: Layer) -> bool:
    return a.param == b.param

"""Training nets that hold QAT layers: what these fake-quantize, and what they have learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

import kernels
from caffeio import Layer, Net
from pipeline.layers.int8 import INT8_TYPES
from pipeline.qat.net import has_qat, object_layers, shared_name, without_qat
from pipeline.qat.plan import DataPlan, FakePlan, WeightPlan

__all__ = ["has_qat", "plan_of", "with_trained"]

Clips = Mapping[str, tuple[float, float]]


def plan_of(net: Net) -> FakePlan:
    """Return what the ActivationQAT and WeightQAT layers of a net fake-quantize.

    Parameters
    ----------
    net : Net
        As `qat_net` makes it, with weights. Layers are named as in `without_qat` of it.
    """
    plain = without_qat(net)
    reads = {x.name: link.reads[0] for x, link in zip(plain.layers, plain.links, strict=True)
             if link.reads}  # fmt: skip
    names = {layer.name for layer in net.layers}
    data = []
    for layer in net.layers:
        if layer.type == "ActivationQAT":
            p = layer.param.retrain_data_quant_param
            readers = tuple(object_layers(layer, names))
            high, low = (float(b.reshape(-1)[0]) for b in layer.blobs)
            clips = None if p.ifmr_init else (high, low)
            data.append(DataPlan(reads[readers[0]], readers, p.fixed_min, clips))
    return FakePlan(tuple(data), dict(_weight_plans(net)))


def _weight_plans(net: Net) -> Mapping[str, WeightPlan]:
    users = _users(net)
    plans = {}
    for layer in net.layers:
        if layer.type == "WeightQAT":
            user = users[shared_name(layer)]
            axis = INT8_TYPES[user.type].channel_axis
            per_channel = layer.param.retrain_weight_quant_param.channel_wise
            plans[user.name] = WeightPlan(axis if per_channel else None, axis)
    return plans


def _users(net: Net) -> dict[str, Layer]:
    """Return the layer that shares each parameter with a WeightQAT layer."""
    made = {shared_name(x) for x in net.layers if x.type == "WeightQAT"}
    return {
        x.param.param[0].name: x
        for x in net.layers
        if x.type != "WeightQAT" and x.param.param and x.param.param[0].name in made
    }


def with_trained(net: Net, blobs: Mapping[str, tuple[np.ndarray, ...]], clips: Clips) -> Net:
    """Return a net with QAT layers that holds what its plain form has learned.

    Parameters
    ----------
    net : Net
        With QAT layers.
    blobs : mapping of layer name to tuple of ndarray
        Of the net without them: float master weights.
    clips : mapping of layer name to (float, float)
        clip_max and clip_min of the data that a layer reads.
    """
    users, names = _users(net), {layer.name for layer in net.layers}
    plans = _weight_plans(net)
    made: dict[str, np.ndarray] = {}
    layers = []
    for layer in net.layers:
        own = blobs.get(layer.name, layer.blobs)
        if layer.type == "ActivationQAT":
            ends = clips[object_layers(layer, names)[0]]
            own = tuple(np.array([v], np.float32) for v in ends)
        elif layer.type == "WeightQAT":
            user = users[shared_name(layer)]
            master = blobs[user.name][0].reshape(layer.blobs[1].shape)
            fake, _ = kernels.arq_fake_quantize(master, plans[user.name].scale_axis)
            made[user.name] = fake
            own = (fake, master)
        elif layer.name in made:
            own = (made[layer.name].reshape(own[0].shape), *own[1:])
        layers.append(replace(layer, blobs=own))
    return net.with_layers(tuple(layers))

"""The shift N to 16 bits, and layers that share scale and N because one Eltwise adds them.

With ``joint_quant`` the accelerator takes a layer's int32 sums to 16 bits by a shift N. Where
several quantized layers feed one Eltwise, their 16-bit numbers are added as they are: so they
share, channel by channel, deq_scale (the larger of theirs: the weights' scales follow) and N. A
Convolution whose output is 1x1 has one deq_scale, the largest, and one N for all its channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from caffeio import Layer, Net
from caffeio.proto.caffe_pb2 import EltwiseParameter
from caffeio.record import LayerRecord, Record
from kernels import ShiftSearch
from pipeline.errors import PipelineError
from pipeline.layers import Shape, layer_type
from pipeline.layers.int8 import INT8_TYPES
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.integers import weight_scales
from pipeline.runtime.state import State

__all__ = ["joined", "joint_groups", "joint_notes", "with_shifts"]

#: How many float32 values up a common deq_scale is looked for that all layers can express.
_STEPS = 64


def joint_groups(net: Net, record: Record) -> tuple[tuple[str, ...], ...]:
    """Return the quantized layers that share deq_scale and N, each layer in one group.

    Those are the layers with weights whose output, as it is, an Eltwise adds without factors or
    takes the maximum of; and those of two such Eltwise layers that have one in common. Layers with
    another number of scales are groups of their own.
    """
    makers = {
        value: layer.name
        for layer, link in zip(net.layers, net.links, strict=True)
        for value in link.writes
        if layer.name in record.layers and INT8_TYPES[layer.type].weighted
    }
    group_of = {name: {name} for name in makers.values()}
    for layer, link in zip(net.layers, net.links, strict=True):
        p = layer.param.eltwise_param
        weighted = any(c != 1 for c in p.coeff)  # such a sum is no sum of the numbers themselves
        if layer.type != "Eltwise" or p.operation == EltwiseParameter.PROD or weighted:
            continue
        fed = [makers[v] for v in link.reads if v in makers]
        for name in fed[1:]:
            if len(record.layers[name].scale_w) != len(record.layers[fed[0]].scale_w):
                continue
            whole = group_of[fed[0]] | group_of[name]
            for member in whole:
                group_of[member] = whole
    order = [layer.name for layer in net.layers if layer.name in group_of]
    return tuple(
        tuple(sorted(group_of[name], key=order.index))
        for name in order
        if min(group_of[name], key=order.index) == name
    )


def joint_notes(net: Net, record: Record) -> tuple[str, ...]:
    """Say which layers were joined."""
    groups = [g for g in joint_groups(net, record) if len(g) > 1]
    return tuple(f"joint_quant: {', '.join(g)} share deq_scale and N" for g in groups)


def joined(net: Net, record: Record, bottoms: Mapping[str, Shape]) -> Record:
    """Return a record whose joint layers have equal products of scales.

    Parameters
    ----------
    net : Net
        Fused.
    record : Record
    bottoms : mapping of layer name to tuple of int
        What each layer reads, batch first.

    Raises
    ------
    PipelineError
        If no float32 scales of the weights give one deq_scale.
    """
    layers, records = {x.name: x for x in net.layers}, dict(record.layers)
    for group in joint_groups(net, record):
        one = any(_is_point(layers[name], bottoms[name]) for name in group)
        if len(group) == 1 and not one:
            continue
        deq = np.max([_deq(records[name]) for name in group], axis=0)
        if one:
            deq = np.full_like(deq, deq.max())
        for name, scales in zip(group, _common(group, records, deq), strict=True):
            records[name] = replace(records[name], scale_w=tuple(float(s) for s in scales))
    return Record(records, record.notes)


def _deq(record: LayerRecord) -> np.ndarray:
    return np.float32(record.scale_d) * np.array(record.scale_w, np.float32)


def _is_point(layer: Layer, bottom: Shape) -> bool:
    """Whether a layer is a Convolution whose output is 1x1."""
    if layer.type != "Convolution":
        return False
    (top,) = layer_type(layer).shapes(layer, [bottom])
    return tuple(top[2:]) == (1, 1)


def _common(
    group: Sequence[str], records: Mapping[str, LayerRecord], deq: np.ndarray
) -> list[np.ndarray]:
    """Return for each layer scales of the weights whose deq_scale is one and the same.

    It is `deq`, or a few float32 values more where a layer's scale of data has no such product.
    """
    found = [np.zeros_like(deq) for _ in group]
    open_channels = np.ones(deq.shape, bool)
    for _ in range(_STEPS):
        tries = [weight_scales(deq, records[name].scale_d) for name in group]
        fits = open_channels.copy()
        for name, scales in zip(group, tries, strict=True):
            fits &= np.float32(records[name].scale_d) * scales == deq
        for scales, chosen in zip(tries, found, strict=True):
            chosen[fits] = scales[fits]
        open_channels &= ~fits
        if not open_channels.any():
            return found
        deq = np.where(open_channels, np.nextafter(deq, np.float32(np.inf)), deq)
    raise PipelineError(
        f"joint_quant: no float32 scales give {', '.join(group)} one deq_scale; name all but one "
        "of them in skip_layers"
    )


def with_shifts(
    net: Net,
    record: Record,
    batches: Iterable[Mapping[str, np.ndarray]],
    bottoms: Mapping[str, Shape],
    *,
    device: str = "cpu",
) -> Record:
    """Return a record with the N of least error for each layer with weights.

    Parameters
    ----------
    net : Net
        Fused; its weights are what the integers stand for.
    record : Record
        Without shifts: what is searched on are the sums of a net that rounds nothing to 16 bits.
    batches : iterable of dict of blob name to array
    bottoms : mapping of layer name to tuple of int
        What each layer reads, batch first.
    device : str
    """
    int8 = Int8Net.of_fused(net, record, device=device)
    groups = joint_groups(net, record)
    group_of = {name: group for group in groups for name in group}
    searches: dict[tuple[str, ...], ShiftSearch] = {}

    def watch(
        i: int, layer: Layer, bottoms: Sequence[np.ndarray], tops: Sequence[np.ndarray]
    ) -> None:
        group = group_of.get(layer.name)
        if group is None:
            return
        q = int8.layers[layer.name]
        sums = INT8_TYPES[layer.type].forward(layer, q, bottoms[0], device, raw=True)
        if group not in searches:
            searches[group] = ShiftSearch(sums.shape[1])
        searches[group].update(sums, device=device)

    state = State()
    for inputs in batches:
        int8.forward(inputs, observer=watch, state=state)
    layers = {x.name: x for x in net.layers}
    records = dict(record.layers)
    for group, search in searches.items():
        count = len(records[group[0]].scale_w)
        point = any(_is_point(layers[name], bottoms[name]) for name in group)
        shifts = search.best(common=point or count == 1)[:count]
        for name in group:
            records[name] = replace(records[name], shift_bit=tuple(int(n) for n in shifts))
    return Record(records, record.notes)

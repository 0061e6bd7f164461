"""From a record and the float net to the layers to quantize, without calibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Literal

import numpy as np

from caffeio import Layer, Net
from caffeio.record import LayerRecord, Record
from kernels import arq
from pipeline.config.calibrate import CalibrateConfig
from pipeline.errors import PipelineError
from pipeline.layers import Shape
from pipeline.layers.int8 import INT8_TYPES
from pipeline.quantize.assign import layer_plan
from pipeline.quantize.eligibility import Verdict, check_float, judge
from pipeline.quantize.fuse import Fused, fuse
from pipeline.quantize.int8_net import unfused
from pipeline.quantize.prepare import Prepared, notes_on
from pipeline.runtime.executor import FloatNet

__all__ = ["Fold", "prepare_record", "size_doubts"]

#: What is folded before a record's factors are applied.
Fold = Literal["all", "convolution"]

#: A weight scale may be this much off from the weights' own before it is doubted: cut off weights
#: weigh more than steps that are too coarse.
_SMALLEST, _LARGEST = 0.5, 4.0


def prepare_record(net: Net, record: Record, fold: Fold = "all") -> Prepared:
    """Fuse a float net as its record says, and check that they belong together.

    Parameters
    ----------
    net : Net
        Float, with weights.
    record : Record
        Layers that it does not name stay in float.
    fold : "all" or "convolution"
        What BatchNorm and Scale layers are folded into, but for layers with ``skip_fusion``:
        whatever calibration folds; or, as the original tool's conversion does, only Convolution
        with BatchNorm and Scale behind it.

    Returns
    -------
    Prepared
        Its warnings name the layers whose factors do not seem to be those of these weights.

    Raises
    ------
    PipelineError
        If the record names a layer that the net has not, or that cannot be quantized.
    caffeio.NetError
        If the net is quantized already.
    """
    check_float(net)
    fused = _fused(net, record, fold)
    verdicts = judge(fused.net)
    _check_names(net, record, fused, verdicts)
    verdicts = tuple(_verdict(v, record) for v in verdicts)
    settings = CalibrateConfig()
    layers = {layer.name: layer for layer in fused.net.layers}
    plans = {name: layer_plan(layers[name], settings) for name in record.layers}
    if not plans:
        raise PipelineError(f"the record names no layer: nothing of net '{net.name}' is quantized")
    doubts = tuple(
        doubt for name, r in record.layers.items() for doubt in _scale_doubts(layers[name], r)
    )
    notes = (*notes_on(net, fused.net), *record.notes)
    return Prepared(net, fused, verdicts, plans, settings, notes, warnings=doubts)


def size_doubts(net: FloatNet, record: Record, shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """Say which layers read data of another size than the record gives.

    Parameters
    ----------
    net : FloatNet
        Fused.
    record : Record
    shapes : mapping of layer name to tuple of int
        Of what each layer reads, batch first.
    """
    doubts = []
    for name, r in record.layers.items():
        size = (*shapes[name][1:], 1, 1)[:3] if name in shapes else None
        given = (r.channels, r.height, r.width)
        if size is not None and None not in given and size != given:
            doubts.append(
                f"layer '{name}' reads {'×'.join(map(str, size))} values, but "
                f"{'×'.join(map(str, given))} in the record: is it the record of this net?"
            )
    return tuple(doubts)


def _fused(net: Net, record: Record, fold: Fold) -> Fused:
    skip = unfused(record)
    if fold == "convolution":
        skip = skip | {layer.name for layer in net.layers if layer.type == "Deconvolution"}
    return fuse(net, skip, training=fold == "convolution")


def _check_names(net: Net, record: Record, fused: Fused, verdicts: tuple[Verdict, ...]) -> None:
    found = {v.layer: v for v in verdicts}
    absorbed = {name: f.layer for f in fused.fusions for name in f.absorbed}
    for name in record.layers:
        if name in absorbed:
            raise PipelineError(
                f"the record names layer '{name}', which is folded into '{absorbed[name]}'"
            )
        if name not in found:
            near = get_close_matches(name, list(found), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise PipelineError(
                f"the record names layer '{name}', which net '{net.name}' does not have{hint}"
            )
        if not found[name].quantize:
            raise PipelineError(
                f"the record names layer '{name}', which cannot be quantized: {found[name].reason}"
            )


def _verdict(verdict: Verdict, record: Record) -> Verdict:
    if not verdict.quantize or verdict.layer in record.layers:
        return verdict
    return Verdict(verdict.layer, verdict.type, False, "not in the record")


def _scale_doubts(layer: Layer, record: LayerRecord) -> Iterator[str]:
    """Say how far the weight scales are from those that the weights themselves call for."""
    if not layer.blobs or not record.scale_w:
        return
    scales = np.array(record.scale_w, np.float32)
    axis = INT8_TYPES[layer.type].channel_axis if scales.size > 1 else None
    own = arq(layer.blobs[0], axis)
    if own.shape != scales.shape:  # an error of its own, when they are applied
        return
    ratio = scales / own
    far = (ratio < _SMALLEST) | (ratio > _LARGEST)
    if far.any():
        worst = float(ratio[far][np.argmax(np.abs(np.log(ratio[far])))])
        yield (
            f"layer '{layer.name}': {far.sum()} of its {scales.size} weight scales are far from "
            f"those of its weights (×{worst:.3g}): is it the record of these weights, and are "
            "BatchNorm and Scale folded as they were ([record] fold, skip_fusion)?"
        )

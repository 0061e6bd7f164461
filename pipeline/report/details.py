"""What the page shows of each layer beyond the tables: its data, its search, its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import kernels
from caffeio import NetError, Value
from kernels import Histogram
from kernels.hfmg import rebinned
from pipeline.layers import Shape
from pipeline.layers.int8 import INT8_TYPES, QuantizedLayer
from pipeline.quantize.corrections import LayerCorrection
from pipeline.quantize.observe import Observations
from pipeline.quantize.prepare import Prepared
from pipeline.report.cost import net_cost
from pipeline.runtime.executor import FloatNet

__all__ = ["LayerCostSeen", "LayerDetail", "layer_costs", "layer_details"]

#: Bins of a histogram, points of a search, channels of weights: what a picture can show.
_BINS, _POINTS, _CHANNELS = 80, 60, 256


@dataclass(frozen=True)
class LayerCostSeen:
    """What a layer costs.

    Attributes
    ----------
    macs, weights : int
        Of one sample; numbers in its blobs.
    top : tuple of int
        Of its output, without the batch.
    """

    macs: int
    weights: int
    top: Shape


@dataclass(frozen=True)
class LayerDetail:
    """What was seen of a quantized layer's data, and what was searched.

    Attributes
    ----------
    method : str
        The search, with its settings.
    channel_wise : bool
        One weight scale a channel.
    values, zeros : int
        Values seen, and how many were exactly 0.
    low, high : float
        Least and greatest of them.
    counts : list of int
        In even bins from `low` to `high`.
    range : list of float
        What the chosen scale and offset can say, from and to.
    tried : list of list of float
        Low end, high end and loss of some candidates of the search, in their order.
    chosen : list of float
        Likewise, of the one that was chosen; empty for methods that try one range.
    winners : dict of str to list of float
        Ends of the range that each method would choose.
    weights_low, weights_high, scale_w : list of float
        Of each output channel, in float; at most 256 of them.
    before, after : float
        SQNR of its output in the corrected net, without its own corrections and with them, in dB
        on the samples held back; NaN where nothing was corrected.
    """

    method: str
    channel_wise: bool
    values: int
    zeros: int
    low: float
    high: float
    counts: list[int]
    range: list[float]
    tried: list[list[float]]
    chosen: list[float]
    winners: dict[str, list[float]]
    weights_low: list[float]
    weights_high: list[float]
    scale_w: list[float]
    before: float = math.nan
    after: float = math.nan


def layer_costs(work: Prepared, inputs: Mapping[str, Shape]) -> dict[str, LayerCostSeen]:
    """Return what each layer costs; nothing if the shapes are not known."""
    try:
        cost = net_cost(FloatNet(work.fused.net), work.verdicts, work.plans, inputs)
    except NetError:
        return {}
    return {c.layer: LayerCostSeen(c.macs, c.weights, c.top[1:]) for c in cost.layers}


def layer_details(
    work: Prepared,
    seen: Observations,
    layers: Mapping[str, QuantizedLayer],
    corrections: Mapping[str, LayerCorrection],
    *,
    device: str = "cpu",
) -> dict[str, LayerDetail]:
    """Return the details of each quantized layer whose data was observed.

    Parameters
    ----------
    work : Prepared
    seen : Observations
    layers : mapping of layer name to QuantizedLayer
    corrections : mapping of layer name to LayerCorrection
    device : str
        Where other methods are searched.
    """
    reads = work.reads(work.fused.net)
    winners: dict[tuple[Value, bool], dict[str, list[float]]] = {}
    details = {}
    for layer in work.fused.net.layers:
        name = layer.name
        if name not in layers or reads[name] not in seen.histograms:
            continue
        hist, method = seen.histograms[reads[name]], work.plans[name].method
        key = reads[name], method.asymmetric
        if key not in winners:
            winners[key] = _winners(hist, method.asymmetric, device)
        tried, chosen = _search(hist, method, device)
        low, high = _weight_ends(layer.blobs, layers[name])
        details[name] = LayerDetail(
            repr(method),
            work.plans[name].channel_wise,
            hist.total,
            hist.zeros,
            hist.low,
            hist.high,
            rebinned(hist, _BINS).tolist(),
            list(layers[name].data.range),
            tried,
            chosen,
            winners[key],
            low,
            high,
            [float(s) for s in layers[name].scale_w[:_CHANNELS]],
            *((done.before, done.after) if (done := corrections.get(name)) else ()),
        )
    return details


def _winners(hist: Histogram, asymmetric: bool, device: str) -> dict[str, list[float]]:
    found = {}
    for name in kernels.METHODS:
        try:
            params = kernels.search_params(hist, name, device=device, asymmetric=asymmetric)
        except ValueError:
            continue
        found[name] = list(params.range)
    return found


def _search(
    hist: Histogram, method: kernels.Method, device: str
) -> tuple[list[list[float]], list[float]]:
    """Return some of what a search tried, and what it chose."""
    trace = kernels.search_trace(hist, method, device=device)
    if not trace.losses.size:
        return [], []
    rows = np.stack([trace.lows, trace.highs, trace.losses], axis=1)
    few = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _POINTS)).astype(int))
    return rows[few].tolist(), rows[trace.best].tolist()


def _weight_ends(
    blobs: tuple[np.ndarray, ...], q: QuantizedLayer
) -> tuple[list[float], list[float]]:
    if not blobs:
        return [], []
    rows = np.moveaxis(blobs[0], INT8_TYPES[q.type].channel_axis, 0)[:_CHANNELS]
    rows = rows.reshape(len(rows), -1)
    return rows.min(axis=1).tolist(), rows.max(axis=1).tolist()

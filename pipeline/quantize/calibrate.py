"""Searching scale and offset of what each layer reads, from what was observed of it.

With `exact`, a second pass over the same batches weighs IFMR's candidates on the data itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from caffeio import Layer, Net, Value
from kernels import (
    METHODS,
    Histogram,
    Ifmr,
    IfmrPass,
    Method,
    Percentile,
    QuantParams,
    SearchTrace,
    ifmr_candidates,
    percentile_range,
    search_params,
    search_trace,
    tail_rank,
)
from pipeline.errors import PipelineError
from pipeline.log import log
from pipeline.quantize.assign import LayerPlan
from pipeline.quantize.given_ranges import given_ranges
from pipeline.quantize.observe import LONGEST_TAIL, Observations, planned
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.state import State

__all__ = ["candidate_ranges", "search", "search_exactly", "with_given"]

#: A percentile among the candidates that cuts off more than the default does.
_CLIPPED = 0.9999

Inputs = Mapping[str, np.ndarray]


def search(
    net: Net, plans: Mapping[str, LayerPlan], seen: Observations, device: str, bits: int = 8
) -> dict[str, QuantParams]:
    """Search scale and offset for every planned layer; one value and method is one search.

    Raises
    ------
    PipelineError
        If the data of a layer is too large to scale.
    """
    params_by_search: dict[tuple[Value, object], QuantParams] = {}
    out = {}
    for layer, value in planned(net, plans):
        method = plans[layer.name].method
        key = (value, method)
        if key not in params_by_search:
            hist = seen.histograms[value]
            try:
                trace = search_trace(hist, method, bits=bits, device=device)
            except ValueError as error:
                raise _unscalable(layer, value, error) from None
            _log(layer, value, hist, method, trace)
            params_by_search[key] = trace.params
        out[layer.name] = params_by_search[key]
    return out


def _log(layer: Layer, value: Value, hist: Histogram, method: Method, trace: SearchTrace) -> None:
    """Log what was observed of a value, what the search tried in it, and what it chose."""
    log.debug(
        "layer '%s' reads '%s': %d values from %.6g to %.6g, %d zeros",
        layer.name, value.blob, hist.total, hist.low, hist.high, hist.zeros,
    )  # fmt: skip
    tried = ""
    if trace.losses.size:
        at = trace.best
        tried = (
            f"; {trace.losses.size} candidates, loss {trace.losses.min():.4g} to "
            f"{trace.losses.max():.4g}, chosen number {at}: {trace.lows[at]:.6g} to "
            f"{trace.highs[at]:.6g}, loss {trace.losses[at]:.4g}"
        )
    log.debug(
        "layer '%s': %r: scale %.9g, offset %d%s",
        layer.name, method, trace.params.scale, trace.params.offset, tried,
    )  # fmt: skip


def with_given(
    net: Net,
    plans: Mapping[str, LayerPlan],
    seen: Observations,
    params: Mapping[str, QuantParams],
    given: Mapping[str, float],
    bits: int = 8,
) -> dict[str, QuantParams]:
    """Return `params` with the ranges of those layers that another runtime has found."""
    changed = {
        layer.name: given_ranges(
            given[layer.name],
            seen.histograms[value],
            plans[layer.name].method.asymmetric,
            bits,
        )
        for layer, value in planned(net, plans)
        if layer.name in given
    }
    return {**params, **changed}


def candidate_ranges(
    net: Net, plans: Mapping[str, LayerPlan], seen: Observations, device: str
) -> dict[str, tuple[QuantParams, ...]]:
    """Return, for every planned layer, the ranges that all methods find, without doubles.

    The layer's own method comes first; all others take its word on `asymmetric`. A method that
    finds none is left out.
    """
    out = {}
    for layer, value in planned(net, plans):
        own = plans[layer.name].method
        others: list[Method] = [m(asymmetric=own.asymmetric) for m in METHODS.values()]
        others.append(Percentile(_CLIPPED, _CLIPPED, asymmetric=own.asymmetric))
        ranges: dict[QuantParams, None] = {}
        for method in (own, *others):
            try:
                ranges[search_params(seen.histograms[value], method, device=device)] = None
            except ValueError:
                continue
        out[layer.name] = tuple(ranges)
    return out


def _unscalable(layer: Layer, value: Value, error: Exception) -> PipelineError:
    return PipelineError(
        f"layer '{layer.name}': no scale for its input blob '{value.blob}': {error}; "
        "name the layer in skip_layers to keep it in float"
    )


def search_exactly(
    net: FloatNet,
    plans: Mapping[str, LayerPlan],
    seen: Observations,
    batches: Iterable[Inputs],
    bits: int = 8,
) -> dict[str, QuantParams]:
    """As `search`, but IFMR's losses are taken from the data itself in a second pass.

    Parameters
    ----------
    net, plans, seen
        As given to and made by `observe`.
    batches : iterable of dict of blob name to array
        The same batches again.
    bits : int
        2..8.

    Raises
    ------
    PipelineError
        If a percentile lies too deep in the data for the tails kept.
    """
    out = search(net.net, plans, seen, net.device, bits)
    passes: dict[tuple[Value, object], IfmrPass] = {}
    for layer, value in planned(net.net, plans):
        method = plans[layer.name].method
        if isinstance(method, Ifmr) and (value, method) not in passes:
            passes[value, method] = _second_pass(layer, value, method, seen, bits)

    def watch(value: Value, numbers: np.ndarray) -> None:
        for (watched, _), second in passes.items():
            if watched == value:
                second.update(numbers, device=net.device)

    state = State()
    for inputs in batches:
        net.watch(inputs, {value for value, _ in passes}, watch, state=state)
    for layer, value in planned(net.net, plans):
        second = passes.get((value, plans[layer.name].method))
        if second is not None:
            out[layer.name] = second.params()
    return out


def _second_pass(
    layer: Layer, value: Value, method: Ifmr, seen: Observations, bits: int
) -> IfmrPass:
    hist = seen.histograms[value]
    ranks = (tail_rank(hist.total, p) for p in (method.max_percentile, method.min_percentile))
    if max(ranks) > hist.tail:
        raise PipelineError(
            f"layer '{layer.name}': exact = true keeps at most {LONGEST_TAIL} extreme values, "
            f"fewer than its percentiles need on {hist.total} values; raise max_percentile and "
            "min_percentile or use fewer samples"
        )
    try:
        return IfmrPass(ifmr_candidates(*percentile_range(hist, method), method, bits))
    except ValueError as error:
        raise _unscalable(layer, value, error) from None

"""Observing what quantized layers read: one pass of the float net fills one histogram a value.

Memory does not grow with the number of batches, and histograms merge exactly in any order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import prod

import numpy as np

import kernels
from caffeio import Layer, Net, Value
from kernels import Histogram, NotFiniteError, tail_rank
from pipeline.errors import PipelineError
from pipeline.log import log
from pipeline.quantize.assign import LayerPlan
from pipeline.runtime.batching import in_halves, splits
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.state import State

__all__ = [
    "LONGEST_TAIL",
    "Observations",
    "RangeObserver",
    "fitted",
    "lacking",
    "observe",
    "observe_shards",
    "planned",
]

#: Extreme values kept at either end of a histogram: at least, and at most.
_TAIL = 128
LONGEST_TAIL = 1 << 22

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Observations:
    """What was seen of each value that a quantized layer reads.

    Attributes
    ----------
    histograms : dict of Value to Histogram
    shapes : dict of Value to tuple of int
        Of the last batch.
    samples : int
    room : dict of Value to int
        How many values to expect, where that is known before.
    """

    histograms: dict[Value, Histogram]
    shapes: dict[Value, tuple[int, ...]]
    samples: int
    room: dict[Value, int] = field(default_factory=dict)


#: Told, between two batches, how many are done and what has been seen in them.
After = Callable[[int, Observations], None]


def observe(
    net: FloatNet,
    plans: Mapping[str, LayerPlan],
    batches: Iterable[Inputs],
    batch_num: int,
    *,
    begin: Observations | None = None,
    done: int = 0,
    after: After | None = None,
) -> Observations:
    """Run the net over the batches and count what the planned layers read.

    Parameters
    ----------
    net : FloatNet
        Of the fused net.
    plans : mapping of layer name to LayerPlan
        The layers to quantize.
    batches : iterable of dict of blob name to array
    batch_num : int
        How many batches to expect, those before `begin` among them: it sizes the exact tails.
    begin : Observations, optional
        What was seen before, to go on from; its histograms change.
    done : int
        The batches in it.
    after : callable, optional
        Called after each batch. What it is given changes with the next one.

    Raises
    ------
    PipelineError
        If a value holds NaN or infinity: it names layer, blob and batch.
    """
    return _observe(net, plans, enumerate(batches, done), batch_num, begin, after)


def observe_shards(
    nets: Sequence[FloatNet],
    plans: Mapping[str, LayerPlan],
    batches: Iterable[Inputs],
    batch_num: int,
    *,
    begin: Observations | None = None,
    done: int = 0,
    after: After | None = None,
) -> Observations:
    """As `observe`, with the batches shared among several devices of one kind.

    Whichever device is free takes the next batch. Histograms merge exactly in any order, so
    the result does not depend on who took what. A net that remembers one batch in the next
    stays on the first device.

    Parameters
    ----------
    nets : sequence of FloatNet
        The same net, one for each device, in the order of the devices.
    plans, batches, batch_num, begin, done
        As for `observe`.
    after : callable, optional
        As for `observe`; with several devices there is no time between two batches, and it is not
        called.
    """
    if len(nets) == 1 or nets[0].remembers:
        return observe(nets[0], plans, batches, batch_num, begin=begin, done=done, after=after)
    queue, lock = enumerate(batches, done), threading.Lock()

    def shard_batches() -> Iterator[tuple[int, Inputs]]:
        while True:
            with lock:
                numbered_batch = next(queue, None)
            if numbered_batch is None:
                return
            yield numbered_batch

    def work(number: int) -> Observations:
        kernels.select_device(nets[number].device, number)
        return _observe(nets[number], plans, shard_batches(), batch_num)

    with ThreadPoolExecutor(len(nets), "observe") as pool:
        parts = list(pool.map(work, range(len(nets))))
    return _merged([*([begin] if begin else []), *parts])


def _merged(parts: Iterable[Observations]) -> Observations:
    """Return what all have seen together."""
    whole = Observations({}, {}, 0)
    for part in parts:
        for value, histogram in part.histograms.items():
            if value in whole.histograms:
                whole.histograms[value].merge(histogram)
            else:
                whole.histograms[value] = histogram
        whole.shapes.update(part.shapes)
        whole = replace(whole, samples=whole.samples + part.samples)
    return whole


class RangeObserver:
    """Counts what planned layers read, batch after batch.

    Parameters
    ----------
    net : FloatNet
        Of the fused net.
    plans : mapping of layer name to LayerPlan
        The layers to quantize.
    batch_num : int
        How many batches to expect: it sizes the exact tails.

    Attributes
    ----------
    seen : Observations
    """

    def __init__(self, net: FloatNet, plans: Mapping[str, LayerPlan], batch_num: int) -> None:
        self.seen = Observations({}, {}, 0)
        self._net = net
        self._plans = plans
        self._batch_num = batch_num
        self._state = State()

    def feed(self, index: int, inputs: Inputs) -> None:
        """Run the net on batch `index` and count.

        Raises
        ------
        PipelineError
            If a value holds NaN or infinity: it names layer, blob and batch.
        """
        log.debug("batch %d: %s", index, {name: np.shape(x) for name, x in inputs.items()})
        net, of_batch = self._net, (index, inputs, self._batch_num, self._state)
        if kernels.resident(net.device) is None:
            self.seen = _count(net, self._plans, self.seen, *of_batch)
        else:
            self.seen = _merged([self.seen, *_fitting(net, self._plans, *of_batch)])


def _observe(
    net: FloatNet,
    plans: Mapping[str, LayerPlan],
    batches: Iterable[tuple[int, Inputs]],
    batch_num: int,
    begin: Observations | None = None,
    after: After | None = None,
) -> Observations:
    """Count what the planned layers read in numbered batches."""
    observer = RangeObserver(net, plans, batch_num)
    observer.seen = begin or observer.seen
    for index, inputs in batches:
        observer.feed(index, inputs)
        if after is not None:
            after(index + 1, observer.seen)
    return observer.seen


def _count(
    net: FloatNet,
    plans: Mapping[str, LayerPlan],
    seen: Observations,
    index: int,
    inputs: Inputs,
    batch_num: int,
    state: State,
) -> Observations:
    """Return what was seen, and now in this batch."""
    readers = _first_readers(net.net, plans)
    shapes = net.shapes({name: np.shape(x) for name, x in inputs.items()})
    seen.shapes.update({value: shapes[value] for value in readers})
    histograms = {}
    for value in readers:
        total = seen.room.get(value, prod(shapes[value]) * batch_num)
        tail = _tail(value, net.net, plans, total)
        histograms[value] = seen.histograms.get(value) or Histogram(tail=tail)
    bad = net.count(inputs, histograms, state=state)
    seen.histograms.update({value: h for value, h in histograms.items() if h.total})
    for value in (value for value in readers if value in bad):
        raise _not_finite(readers[value], value, index, bad[value])
    return replace(seen, samples=seen.samples + len(next(iter(inputs.values()))))


def _fitting(
    net: FloatNet,
    plans: Mapping[str, LayerPlan],
    index: int,
    inputs: Inputs,
    batch_num: int,
    state: State,
) -> list[Observations]:
    """Observe a batch, in halves where the device's memory does not suffice.

    Each part fills histograms of its own, so that a failed attempt leaves no counts.
    """
    # the tails are sized by the whole batch: histograms of other tails do not merge
    whole = net.shapes({name: np.shape(x) for name, x in inputs.items()})
    room = {value: prod(whole[value]) * batch_num for value in _first_readers(net.net, plans)}
    parts: list[Observations] = []

    def run(part: Inputs) -> Inputs:
        fresh = Observations({}, {}, 0, room)
        parts.append(_count(net, plans, fresh, index, part, batch_num, state))
        return {}

    layers = [i for i, link in enumerate(net.net.links) if link.reads]
    in_halves(run, inputs, splits(net.net, layers, whole))
    return parts


def _first_readers(net: Net, plans: Mapping[str, LayerPlan]) -> dict[Value, Layer]:
    """Return, for each value that planned layers read, the first of them."""
    readers: dict[Value, Layer] = {}
    for layer, value in planned(net, plans):
        readers.setdefault(value, layer)
    return readers


def _not_finite(
    layer: Layer, value: Value, index: int, parts: list[NotFiniteError]
) -> PipelineError:
    nans, infinities = sum(p.nans for p in parts), sum(p.infinities for p in parts)
    return PipelineError(
        f"layer '{layer.name}' reads blob '{value.blob}', which in batch {index} "
        f"holds {nans} NaN and {infinities} infinite values; check the "
        "weights of the layers before it and the preprocessing"
    )


def _tail(value: Value, net: Net, plans: Mapping[str, LayerPlan], total: int) -> int:
    """Return the tail length that makes the percentiles of all readers of a value exact."""
    longest = _TAIL
    for i in net.readers[value]:
        plan = plans.get(net.layers[i].name)
        for end in ("max_percentile", "min_percentile"):
            p = None if plan is None else getattr(plan.method, end, None)
            longest = longest if p is None else max(longest, tail_rank(total, p))
    return min(longest, LONGEST_TAIL)


def lacking(
    seen: Observations, net: Net, plans: Mapping[str, LayerPlan], share: Fraction = Fraction(1)
) -> tuple[str, ...]:
    """Return the layers of whose data too little was kept: nothing, or too few extreme values.

    Parameters
    ----------
    seen : Observations
        Made for other plans of the same net.
    net : Net
        The fused net.
    plans : mapping of layer name to LayerPlan
    share : Fraction
        Of all batches, those that were observed.
    """
    tails = _tails(seen, net, plans, share)
    enough = {v for v, tail in tails.items() if seen.histograms[v].tail >= tail}
    return tuple(layer.name for layer, value in planned(net, plans) if value not in enough)


def fitted(
    seen: Observations, net: Net, plans: Mapping[str, LayerPlan], share: Fraction = Fraction(1)
) -> Observations:
    """Return, of what was observed for other plans, just what these would have observed.

    Nothing must be `lacking`. Parameters as there.
    """
    tails = _tails(seen, net, plans, share)
    histograms = {
        v: Histogram.from_arrays(seen.histograms[v].to_arrays(), tail) for v, tail in tails.items()
    }
    return Observations(histograms, {v: seen.shapes[v] for v in tails}, seen.samples)


def _tails(
    seen: Observations, net: Net, plans: Mapping[str, LayerPlan], share: Fraction
) -> dict[Value, int]:
    """Return the tails that plans call for, of the values that were seen."""
    totals = {v: int(h.total / share) for v, h in seen.histograms.items()}
    readers = _first_readers(net, plans)
    return {v: _tail(v, net, plans, totals[v]) for v in readers if v in totals}


def planned(net: Net, plans: Mapping[str, LayerPlan]) -> list[tuple[Layer, Value]]:
    """Return the layers to quantize, in the net's order, and what each reads."""
    return [
        (layer, link.reads[0])
        for layer, link in zip(net.layers, net.links, strict=True)
        if layer.name in plans
    ]

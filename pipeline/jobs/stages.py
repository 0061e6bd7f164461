"""The stages of a run, between which values travel: calibrate, improve, record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

import kernels
from caffeio import Net
from caffeio.record import Record
from kernels import QuantParams
from pipeline.config.improve import EFFORTS, ImproveConfig
from pipeline.config.load import Config
from pipeline.jobs.data import calibration_feed, chosen_how
from pipeline.jobs.fingerprint import fingerprint_of
from pipeline.jobs.keeper import Keeper
from pipeline.jobs.state_file import Observed
from pipeline.layers import Shape
from pipeline.log import log
from pipeline.quantize.calibrate import candidate_ranges, search, search_exactly, with_given
from pipeline.quantize.corrections import Corrected
from pipeline.quantize.data_seen import DataSeen
from pipeline.quantize.feed import Feed
from pipeline.quantize.improve import (
    Calibrated,
    Improved,
    improve,
    wanted_improvements,
)
from pipeline.quantize.integers import layer_record
from pipeline.quantize.joint import joined
from pipeline.quantize.observe import Observations, observe_shards
from pipeline.quantize.prepare import Prepared
from pipeline.quantize.samples import Samples, samples_of
from pipeline.report.progress import Reporter
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.shapes import input_shapes as declared_shapes

__all__ = [
    "Clock",
    "Ranges",
    "calibrate",
    "calibration_batches",
    "improved",
    "improved_by",
    "make_record",
    "ranges_of",
    "read_samples",
]


#: The pass that observes, in a progress bar.
_OBSERVE = "calibrate"


@dataclass
class Clock:
    """Seconds that each stage took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)
        log.info("stage %s: %.3f s", name, self.seconds[name])


@dataclass(frozen=True)
class Ranges:
    """Scale and offset of the data that each quantized layer reads.

    Attributes
    ----------
    params : dict of layer name to QuantParams
    shapes : dict of layer name to tuple of int
        Of that data, batch first.
    samples : int
        How many were observed.
    seen : Observations, optional
        What was observed.
    data : DataSeen, optional
        The samples themselves.
    """

    params: dict[str, QuantParams]
    shapes: dict[str, Shape]
    samples: int
    seen: Observations | None = None
    data: DataSeen | None = None


def calibrate(
    config: Config,
    work: Prepared,
    net: FloatNet,
    reporter: Reporter,
    bits: int = 8,
    keeper: Keeper | None = None,
) -> Ranges:
    """Observe the reference samples and search scale and offset for each layer.

    A `keeper` gives back what was observed before, and keeps what is.
    """
    c = work.calibrate
    feed = calibration_feed(config, work)
    try:
        others = range(1, kernels.device_count(net.device))
        nets = [net, *(FloatNet(net.net, device=net.device) for _ in others)]
        observed = _observed(config, work, feed, nets, reporter, keeper)
        seen = observed.seen
        if c.exact:
            raw_batches = feed.batches(c.batch_size, c.batch_num)
            tracked = reporter.track(raw_batches, "calibrate, exactly", c.batch_num)
            again = (feed.for_net(b) for b in tracked)
            params = search_exactly(net, work.plans, seen, again, bits=bits)
        else:
            params = search(net.net, work.plans, seen, net.device, bits=bits)
        params = with_given(net.net, work.plans, seen, params, work.given, bits=bits)
    finally:
        feed.close()
    ranges, order = ranges_of(work, net.net, seen, params), config.transform.channel_order
    data = observed.watch.seen(chosen_how(work), declared_shapes(work.net), order)
    return replace(ranges, data=data)


def _observed(
    config: Config,
    work: Prepared,
    feed: Feed,
    nets: Sequence[FloatNet],
    reporter: Reporter,
    keeper: Keeper | None,
) -> Observed:
    """Observe what the planned layers read, or what is left of that."""
    c, net = work.calibrate, nets[0]
    begin, after = Observed(), None
    if keeper is not None:
        begin = keeper.begin(
            lambda: fingerprint_of(config, work, feed, net.device), net.net, work.plans, c.batch_num
        )
        # what recurrent layers remember is not kept
        after = None if net.remembers else keeper.after
    if begin.batches == c.batch_num:
        return begin
    rest, left = feed.after(begin.batches * c.batch_size), c.batch_num - begin.batches
    raw = begin.watch.watched(rest.batches(c.batch_size, left))
    batches = (feed.for_net(b) for b in reporter.track(raw, _OBSERVE, left))
    seen = observe_shards(
        nets, work.plans, batches, c.batch_num, begin=begin.seen, done=begin.batches,
        after=after and (lambda done, seen: after(Observed(done, seen, begin.watch))),
    )  # fmt: skip
    observed = Observed(c.batch_num, seen, begin.watch)
    if keeper is not None:
        keeper.finished(observed)
    return observed


def ranges_of(
    work: Prepared, net: Net, seen: Observations, params: dict[str, QuantParams]
) -> Ranges:
    """Put together what was observed of a fused net and what was found in it."""
    shapes = {name: seen.shapes[value] for name, value in work.reads(net).items()}
    return Ranges(params, shapes, seen.samples, seen)


def make_record(work: Prepared, ranges: Ranges) -> Record:
    """Return the record: data as in `ranges`, weights by ARQ, joint layers with joint scales."""
    record = Record(
        {
            layer.name: layer_record(
                layer,
                ranges.params[layer.name],
                channel_wise=work.plans[layer.name].channel_wise,
                shape=ranges.shapes[layer.name],
                skip_fusion=layer.name in work.fused.kept,
            )
            for layer in work.fused.net.layers
            if layer.name in work.plans
        }
    )
    if not work.calibrate.joint_quant:
        return record
    return joined(work.fused.net, record, ranges.shapes)


@contextmanager
def calibration_batches(
    config: Config, work: Prepared, reporter: Reporter, what: str
) -> Iterator[Iterator[Mapping[str, np.ndarray]]]:
    """Give the calibration batches as the net reads them, behind a bar of that name."""
    c = work.calibrate
    feed = calibration_feed(config, work)
    try:
        batches = feed.batches(c.batch_size, c.batch_num)
        yield (feed.for_net(b) for b in reporter.track(batches, what, c.batch_num))
    finally:
        feed.close()


def read_samples(config: Config, work: Prepared) -> Samples:
    """Read calibration samples in parts, some of them held back."""
    c = work.calibrate
    feed = calibration_feed(config, work)
    try:
        batches = feed.batches(c.batch_size, c.batch_num)
        return samples_of(work.fused.net, (feed.for_net(b) for b in batches))
    finally:
        feed.close()


def improved(
    config: Config,
    work: Prepared,
    ranges: Ranges,
    reporter: Reporter,
    clock: Clock,
    *,
    device: str,
    levels: Mapping[str, int] | None = None,
) -> Improved:
    """Do what the effort asks for beyond ranges; see `pipeline.quantize.improve`.

    `levels` are layers whose weights may take so many values only.
    """

    def again(changed: Prepared) -> Ranges:
        return calibrate(config, changed, FloatNet(changed.fused.net, device=device), reporter)

    with clock.stage("improve"):
        return improved_by(
            config.improve,
            work,
            ranges,
            lambda: read_samples(config, work),
            again,
            reporter,
            device=device,
            levels=levels,
        )


def improved_by(
    settings: ImproveConfig,
    work: Prepared,
    ranges: Ranges,
    samples: Callable[[], Samples],
    again: Callable[[Prepared], Ranges],
    reporter: Reporter,
    *,
    device: str,
    levels: Mapping[str, int] | None = None,
) -> Improved:
    """As `improved`, on samples from anywhere.

    Parameters
    ----------
    settings : ImproveConfig
    work : Prepared
    ranges : Ranges
    samples : callable
        Returns the calibration samples in parts.
    again : callable
        ``again(work) -> Ranges``: calibrates a net of other weights on the same samples.
    reporter : Reporter
    device : str
    levels : mapping of layer name to int, optional
    """
    first = _calibrated(work, ranges, device)
    wanted = wanted_improvements(settings, work)
    original = EFFORTS["original"].model_copy(update={"memory": wanted.memory})
    if wanted == original and not levels:
        return Improved(work.fused, Corrected(work.fused.net, first.record), (), ())

    def recalibrated(net: Net) -> Calibrated:
        changed = replace(work, fused=replace(work.fused, net=net))
        return _calibrated(changed, again(changed), device)

    return improve(
        work,
        first,
        samples(),
        wanted,
        recalibrated,
        levels=levels,
        device=device,
        progress=lambda what, names: reporter.track(
            names, what, len(first.record.layers), "layers"
        ),
    )


def _calibrated(work: Prepared, ranges: Ranges, device: str) -> Calibrated:
    """Return what improvements begin with."""
    assert ranges.seen is not None
    candidates = partial(candidate_ranges, work.fused.net, work.plans, ranges.seen, device)
    return Calibrated(make_record(work, ranges), candidates)

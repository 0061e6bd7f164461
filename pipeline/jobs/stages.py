"""The stages of a run, between which values travel: calibrate, record, evaluate, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

import kernels
from caffeio import Net
from caffeio.record import Record
from kernels import QuantParams
from pipeline.config.improve import EFFORTS, ImproveConfig
from pipeline.config.load import Config
from pipeline.export import format_notes
from pipeline.jobs.convert_config import original_config
from pipeline.jobs.data import calibration_feed, chosen_how, has_evaluation
from pipeline.jobs.evaluation import evaluate
from pipeline.jobs.files import Writer, format_writers, model_writers, write_files, write_text
from pipeline.layers import Shape
from pipeline.log import log
from pipeline.quantize.calibrate import candidate_ranges, search, search_exactly
from pipeline.quantize.corrections import Corrected
from pipeline.quantize.data_seen import DataSeen, DataWatch
from pipeline.quantize.evaluate import (
    LayerError,
    ModelScore,
)
from pipeline.quantize.fallback import FallbackResult
from pipeline.quantize.improve import (
    Calibrated,
    Improved,
    improve,
    wanted_improvements,
)
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.integers import layer_record
from pipeline.quantize.joint import joined, joint_notes, with_shifts
from pipeline.quantize.levels import NuqResult
from pipeline.quantize.observe import Observations, observe_shards
from pipeline.quantize.prepare import Prepared
from pipeline.quantize.samples import Samples, samples_of
from pipeline.report.about import about
from pipeline.report.advice import judgement, sensitive_layers
from pipeline.report.details import layer_costs, layer_details
from pipeline.report.progress import Reporter
from pipeline.report.values import LayerReport, Report
from pipeline.report.warnings import said_of
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.shapes import input_shapes as declared_shapes

__all__ = [
    "Clock",
    "Ranges",
    "calibrate",
    "finish",
    "improved",
    "improved_by",
    "make_record",
    "make_report",
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
    config: Config, work: Prepared, net: FloatNet, reporter: Reporter, bits: int = 8
) -> Ranges:
    """Observe the reference samples and search scale and offset for each layer."""
    c = work.calibrate
    feed, watch = calibration_feed(config, work), DataWatch()
    try:

        def batches(what: str) -> Iterator[Mapping[str, np.ndarray]]:
            raw_batches = feed.batches(c.batch_size, c.batch_num)
            raw_batches = raw_batches if what != _OBSERVE else watch.watched(raw_batches)
            return (feed.for_net(b) for b in reporter.track(raw_batches, what, c.batch_num))

        others = range(1, kernels.device_count(net.device))
        nets = [net, *(FloatNet(net.net, device=net.device) for _ in others)]
        seen = observe_shards(nets, work.plans, batches(_OBSERVE), c.batch_num)
        if c.exact:
            again = batches("calibrate, exactly")
            params = search_exactly(net, work.plans, seen, again, bits=bits)
        else:
            params = search(net.net, work.plans, seen, net.device, bits=bits)
    finally:
        feed.close()
    ranges, order = ranges_of(work, net.net, seen, params), config.transform.channel_order
    return replace(ranges, data=watch.seen(chosen_how(work), declared_shapes(work.net), order))


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


def finish(
    config: Config,
    work: Prepared,
    ranges: Ranges,
    files: dict[str, Path],
    clock: Clock,
    reporter: Reporter,
    *,
    device: str,
    before: Net | None = None,
    more: Mapping[str, Writer] | None = None,
    improvements: Improved | None = None,
    fallback: FallbackResult | None = None,
    nuq: NuqResult | None = None,
) -> Report:
    """Go from ranges to files: record, integers, evaluation, report; the end of every job.

    Parameters
    ----------
    config : Config
    work : Prepared
    ranges : Ranges
        Of the data that each quantized layer reads.
    files : dict of str to Path
        What to write, by kind.
    clock : Clock
    reporter : Reporter
    device : str
    before : Net, optional
        The float net to compare with; by default the one that is quantized.
    more : mapping of kind to Writer, optional
        For files beside those of the model.
    improvements : Improved, optional
        What has been done beyond ranges; without it weights are rounded as they are.
    fallback : FallbackResult, optional
        What has been tried to reach an accuracy.
    nuq : NuqResult, optional
        Layers whose weights have been given few values.
    """
    with clock.stage("quantize"):
        if improvements is None:
            plain = Corrected(work.fused.net, make_record(work, ranges))
            improvements = Improved(work.fused, plain, (), ())
        notes = (*work.notes, *improvements.notes)
        work = replace(work, fused=improvements.fused, notes=notes)
        result = improvements.result
        record = result.record
        if work.calibrate.joint_quant and config.retrain is None and config.record is None:
            with calibration_batches(config, work, reporter, "search N") as batches:
                record = with_shifts(result.net, record, batches, ranges.shapes)
            work = replace(work, notes=(*work.notes, *joint_notes(result.net, record)))
        int8 = Int8Net.of_fused(result.net, record, device=device)
    scores: tuple[tuple[ModelScore, ...], dict[str, LayerError]] = ((), {})
    if has_evaluation(config):
        with clock.stage("evaluate"):
            scores = evaluate(config, work, before or work.net, int8, device, reporter)
    name = work.net.name or config.model.prototxt.stem
    report = make_report(name, work, record, scores, files, ranges.samples, clock)
    notes, warnings = said_of(work, ranges.data, ranges.seen, scores[0])
    notes = (*notes, *format_notes(config.output.formats, int8.layers))
    report = replace(
        report, trials=improvements.trials, fallback=fallback, nuq=nuq, net_quantized=result.net,
        data=ranges.data, notes=notes, warnings=warnings,
    )  # fmt: skip
    report = _detailed(config, work, ranges, report, int8, device)
    writers = {**model_writers(report, work.fused, int8), **(more or {})}
    writers |= format_writers(config, int8)
    if (settings := original_config(config, work)) is not None:
        writers["original_config"] = lambda path: write_text(path, settings)
    write_files(files, writers)
    return report


def _detailed(
    config: Config, work: Prepared, ranges: Ranges, report: Report, int8: Int8Net, device: str
) -> Report:
    """Return the report with what its page shows beyond the tables."""
    details = {} if ranges.seen is None else layer_details(work, ranges.seen, int8.layers)
    inputs = {} if ranges.data is None else {s.blob: (1, *s.shape) for s in ranges.data.inputs}
    costs = layer_costs(work, inputs)
    report = replace(report, details=details, costs=costs, about=about(config, device))
    return replace(report, judgement=judgement(report), sensitive=sensitive_layers(report))


def make_report(
    name: str,
    work: Prepared,
    record: Record,
    scores: tuple[tuple[ModelScore, ...], dict[str, LayerError]],
    files: dict[str, Path],
    samples: int,
    clock: Clock,
) -> Report:
    """Gather what a run found."""
    accuracy, errors = scores
    layers = tuple(
        LayerReport(
            v.layer,
            v.type,
            v.quantize,
            v.reason,
            work.fused.origin(v.layer)[1:],
            record.layers[v.layer].scale_d if v.quantize else None,
            record.layers[v.layer].offset_d if v.quantize else None,
            errors.get(v.layer),
        )
        for v in work.verdicts
    )
    return Report(
        name, record, accuracy, layers, files, samples, clock.seconds, work.notes, work.effort
    )

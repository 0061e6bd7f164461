"""The end of every job: record, integers, evaluation, report, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from caffeio import Net
from caffeio.record import Record
from pipeline.config.improve import memory_bytes
from pipeline.config.load import Config
from pipeline.export import format_notes
from pipeline.jobs.convert_config import original_config
from pipeline.jobs.data import has_evaluation
from pipeline.jobs.evaluation import evaluate
from pipeline.jobs.files import format_writers, model_writers, write_text
from pipeline.jobs.stages import Clock, Ranges, calibration_batches, make_record, read_samples
from pipeline.jobs.writing import Writer, write_files
from pipeline.quantize.corrections import Corrected
from pipeline.quantize.evaluate import LayerError, ModelScore
from pipeline.quantize.fallback import FallbackResult
from pipeline.quantize.improve import Improved, judged_blobs
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.joint import joint_notes, with_shifts
from pipeline.quantize.levels import NuqResult
from pipeline.quantize.prepare import Prepared
from pipeline.quantize.sensitivity import Sensitivity, sensitivities
from pipeline.report.about import about
from pipeline.report.advice import judgement, sensitive_layers
from pipeline.report.curve import Training
from pipeline.report.details import layer_costs, layer_details
from pipeline.report.progress import Reporter
from pipeline.report.values import LayerReport, Report
from pipeline.report.warnings import said_of

__all__ = ["finish", "measured_sensitivity"]

#: Samples that sensitivity is measured on, at most.
_SAMPLES = 8


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
    training: Training | None = None,
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
    training : Training, optional
        The course of the training that the net comes from.
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
                record = with_shifts(result.net, record, batches, ranges.shapes, device=device)
            work = replace(work, notes=(*work.notes, *joint_notes(result.net, record)))
        int8 = Int8Net.of_fused(result.net, record, device=device)
    scores: tuple[tuple[ModelScore, ...], dict[str, LayerError]] = ((), {})
    if has_evaluation(config):
        with clock.stage("evaluate"):
            scores = evaluate(config, work, before or work.net, int8, device, reporter)
    lost: tuple[Sensitivity, ...] = ()
    if config.output.sensitivity:
        with clock.stage("sensitivity"):
            lost = measured_sensitivity(config, work, result, reporter, device=device)
    name = work.net.name or config.model.prototxt.stem
    report = _make_report(name, work, record, scores, files, ranges.samples, clock)
    notes, warnings = said_of(work, ranges.data, ranges.seen, scores[0])
    notes = (*notes, *format_notes(config.output.formats, int8.layers))
    report = replace(
        report, trials=improvements.trials, fallback=fallback, nuq=nuq, net_quantized=result.net,
        data=ranges.data, notes=notes, warnings=warnings, sensitivity=lost, training=training,
    )  # fmt: skip
    report = _detailed(config, work, ranges, report, int8, result, device)
    writers = {**model_writers(report, work.fused, int8), **(more or {})}
    writers |= format_writers(config, int8)
    if (settings := original_config(config, work)) is not None:
        writers["original_config"] = lambda path: write_text(path, settings)
    write_files(files, writers, overwrite=config.output.overwrite)
    return report


def measured_sensitivity(
    config: Config, work: Prepared, result: Corrected, reporter: Reporter, *, device: str
) -> tuple[Sensitivity, ...]:
    """Measure what each layer loses alone, on calibration samples held back.

    Parameters
    ----------
    config : Config
    work : Prepared
        With the float net.
    result : Corrected
        What it has become.
    reporter : Reporter
    device : str
    """
    part = read_samples(config, work).judges[0]
    names = result.record.layers
    return sensitivities(
        work.fused.net,
        result,
        [{name: x[:_SAMPLES] for name, x in part.items()}],
        judged_blobs(work.net),
        device=device,
        memory=memory_bytes(config.improve.memory),
        progress=lambda layers: reporter.track(layers, "sensitivity", len(names), "layers"),
    )


def _detailed(
    config: Config,
    work: Prepared,
    ranges: Ranges,
    report: Report,
    int8: Int8Net,
    result: Corrected,
    device: str,
) -> Report:
    """Return the report with what its page shows beyond the tables."""
    details = {}
    if ranges.seen is not None:
        details = layer_details(work, ranges.seen, int8.layers, result.layers, device=device)
    inputs = {} if ranges.data is None else {s.blob: (1, *s.shape) for s in ranges.data.inputs}
    costs = layer_costs(work, inputs)
    report = replace(report, details=details, costs=costs, about=about(config, device))
    return replace(report, judgement=judgement(report), sensitive=sensitive_layers(report))


def _make_report(
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

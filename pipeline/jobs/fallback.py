"""From a quantized net that loses too much to one that does not: `[fallback]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from caffeio import Net
from caffeio.record import Record
from pipeline.config.fallback import FallbackConfig
from pipeline.config.improve import memory_bytes
from pipeline.config.load import Config
from pipeline.jobs.metric import Metric
from pipeline.jobs.stages import Clock, Ranges, calibrate, improved, read_samples
from pipeline.layers import Shape
from pipeline.quantize.corrections import Corrected
from pipeline.quantize.evaluate import layer_errors
from pipeline.quantize.fallback import FallbackResult, fewest_in_float, order_of
from pipeline.quantize.improve import Improved, judged_blobs
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.prepare import Prepared, prepare
from pipeline.quantize.sensitivity import sensitivities
from pipeline.report.cost import net_cost
from pipeline.report.progress import Reporter
from pipeline.runtime.executor import FloatNet

__all__ = ["FellBack", "fall_back"]

_REASON = "left in float by [fallback]"


@dataclass(frozen=True)
class FellBack:
    """What goes on to the files.

    Attributes
    ----------
    work : Prepared
        With the layers that are still quantized.
    ranges : Ranges
    improvements : Improved
    result : FallbackResult
    """

    work: Prepared
    ranges: Ranges
    improvements: Improved
    result: FallbackResult


def fall_back(
    config: Config,
    work: Prepared,
    ranges: Ranges,
    better: Improved,
    reporter: Reporter,
    clock: Clock,
    *,
    device: str,
) -> FellBack:
    """Raise the effort, then leave layers in float, until the metric reaches its target.

    Parameters
    ----------
    config : Config
        With ``[fallback]``.
    work, ranges, better
        As the job has them.
    reporter : Reporter
    clock : Clock
    device : str

    Raises
    ------
    ConfigError
        If the metric cannot be measured on the data.
    """
    settings = config.fallback
    assert settings is not None
    metric = Metric(config, work, settings.metric, device, "fallback.metric")
    target = metric.exact - (settings.max_drop or 0)
    if settings.floor is not None:
        target = settings.floor
    value = metric(better.result)
    reporter.say(f"fallback: {settings.metric} {value:.2f}, {target:.2f} is asked for")
    if value < target and work.effort != "best":
        raised = config.model_copy(
            update={"calibrate": config.calibrate.model_copy(update={"effort": "best"})}
        )
        again = prepare(raised, work.net)
        again = replace(again, notes=work.notes, warnings=work.warnings)
        net = FloatNet(again.fused.net, device=device)
        new_ranges = calibrate(raised, again, net, reporter)
        best = improved(raised, again, new_ranges, reporter, clock, device=device)
        new_value = metric(best.result)
        reporter.say(f"fallback: {settings.metric} {new_value:.2f} with effort = 'best'")
        if new_value > value:
            work, ranges, better, value = again, new_ranges, best, new_value
    costs = _costs(work, settings, metric.input_shapes)

    def measure(in_float: frozenset[str]) -> float:
        found = metric(_with_float(better, in_float)) if in_float else value
        reporter.say(f"fallback: {settings.metric} {found:.2f} with {len(in_float)} in float")
        return found

    order = _order(config, work, better, costs, reporter, device) if value < target else ()
    take_back = settings.strategy == "sensitivity"
    result = fewest_in_float(order, costs, measure, target, take_back=take_back)
    return FellBack(*_left_in_float(work, ranges, better, result), result)


def _costs(
    work: Prepared, settings: FallbackConfig, input_shapes: Mapping[str, Shape]
) -> dict[str, float]:
    """Return what each quantized layer costs in float."""
    names = [v.layer for v in work.verdicts if v.quantize]
    if settings.cost == "layers":
        return dict.fromkeys(names, 1.0)
    cost = net_cost(FloatNet(work.fused.net), work.verdicts, work.plans, input_shapes)
    return {c.layer: float(max(c.macs, 1)) for c in cost.layers if c.layer in names}


def _order(
    config: Config,
    work: Prepared,
    better: Improved,
    costs: Mapping[str, float],
    reporter: Reporter,
    device: str,
) -> tuple[str, ...]:
    """Return the layers in the order in which they are left in float."""
    assert config.fallback is not None
    samples = read_samples(config, work).judges
    if config.fallback.strategy == "original":
        net = FloatNet(better.fused.net, device=device)
        int8 = Int8Net.of_fused(better.result.net, better.result.record, device=device)
        errors = layer_errors(net, int8, samples)
        return tuple(sorted(errors, key=lambda name: errors[name].cosine))
    names = better.result.record.layers
    found = sensitivities(
        better.fused.net,
        better.result,
        samples[:1],
        judged_blobs(work.net),
        device=device,
        memory=memory_bytes(config.improve.memory),
        progress=lambda layers: reporter.track(layers, "sensitivity", len(names), "layers"),
    )
    return order_of({s.layer: 10 ** (-s.alone / 10) for s in found}, costs)


def _with_float(better: Improved, in_float: frozenset[str]) -> Corrected:
    """Return a quantized net with some layers as they are in float."""
    whole = {layer.name: layer for layer in better.fused.net.layers}
    net: Net = better.result.net
    layers = tuple(whole[x.name] if x.name in in_float else x for x in net.layers)
    records = better.result.record.layers
    kept = {name: record for name, record in records.items() if name not in in_float}
    return Corrected(net.with_layers(layers), Record(kept), better.result.layers)


def _left_in_float(
    work: Prepared, ranges: Ranges, better: Improved, result: FallbackResult
) -> tuple[Prepared, Ranges, Improved]:
    """Return the values of the job with the chosen layers in float."""
    names = frozenset(result.in_float)
    verdicts = tuple(
        replace(v, quantize=False, reason=_REASON) if v.layer in names else v for v in work.verdicts
    )
    plans = {name: plan for name, plan in work.plans.items() if name not in names}
    better = replace(better, result=_with_float(better, names))
    return replace(work, verdicts=verdicts, plans=plans), ranges, better

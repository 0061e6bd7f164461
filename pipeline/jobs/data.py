"""The data of a run: opened, its samples chosen, and looked at before the long work."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from caffeio import CaffeFileError, NetError
from caffeio.data import Choice
from pipeline.config.load import Config, EvaluateConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.layers import Shape, layer_type
from pipeline.quantize.accuracy import Accuracy
from pipeline.quantize.batch_norm import NormSeen, first_norms, norms_seen
from pipeline.quantize.data_check import check_data
from pipeline.quantize.feed import Feed, open_feed
from pipeline.quantize.improve import judged_blobs
from pipeline.quantize.outputs import compared_blobs
from pipeline.quantize.prepare import Prepared
from pipeline.runtime.executor import FloatNet

__all__ = [
    "NO_SAMPLES",
    "Looked",
    "calibration_feed",
    "chosen_how",
    "evaluation",
    "evaluation_feed",
    "fits",
    "has_evaluation",
    "input_shapes",
    "look_at_data",
    "looked_at",
    "no_accuracy",
]

NO_SAMPLES = "evaluate.data holds no samples from 'start' on"
#: Samples that are run to the first BatchNorm layers.
_NORM_SAMPLES = 16


@dataclass(frozen=True)
class Looked:
    """What the data tells before it is run.

    Attributes
    ----------
    shapes, evaluated : dict of blob name to tuple of int
        Of the net's inputs, a batch of the calibration data and one of the evaluation data.
    notes, warnings : tuple of str
    """

    shapes: dict[str, Shape]
    evaluated: dict[str, Shape]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def chosen_how(work: Prepared) -> Choice:
    """Return how calibration samples are chosen where the config does not say it.

    Spread over the source; but the first ones where the results are to be the original tool's,
    where the net's own data layer says what to read, and for nets whose state goes from one
    sample to the next.
    """
    c = work.calibrate
    if c.samples is not None:
        return c.samples
    own = bool(c.data) and c.data[0].kind == "net"
    remembers = any(layer_type(x).resume is not None for x in work.net.layers)
    return "first" if work.effort == "original" or own or remembers else "spread"


def calibration_feed(config: Config, work: Prepared, *, labelled: bool = False) -> Feed:
    """Open the calibration data, of which some samples are chosen; labels are left aside."""
    c = work.calibrate
    data, where = config.calibrate.data, "calibrate.data"
    feed = open_feed(work.net, data, config.transform, where, labelled=labelled)
    return feed.chosen(chosen_how(work), c.batch_size * c.batch_num, c.seed or 0)


def evaluation(config: Config, work: Prepared) -> EvaluateConfig:
    """Return what to evaluate on: ``[evaluate]``, the test data, or the reference samples."""
    c = work.calibrate
    if config.evaluate is not None:
        return config.evaluate
    if config.retrain is not None and config.retrain.test_data:
        return EvaluateConfig(data=config.retrain.test_data)
    if not c.data:
        raise ConfigError("[evaluate] is missing: it names the samples to compare models on")
    return EvaluateConfig(data=c.data, batch_size=c.batch_size, batch_num=c.batch_num)


def has_evaluation(config: Config) -> bool:
    """Whether there are samples to compare models on: only a record's conversion needs none."""
    return config.record is None or config.evaluate is not None or bool(config.calibrate.data)


def _on_calibration(config: Config, work: Prepared) -> bool:
    """Whether the models are compared on the samples that were observed."""
    tested = config.retrain is not None and bool(config.retrain.test_data)
    return config.evaluate is None and not tested and bool(work.calibrate.data)


def evaluation_feed(config: Config, work: Prepared) -> Feed:
    """Open the evaluation data: the very samples that are observed where there is no other."""
    e = evaluation(config, work)
    if not _on_calibration(config, work):
        where, outputs = "evaluate.data", e.outputs
        return open_feed(work.net, e.data, config.transform, where, outputs=outputs)
    try:
        return calibration_feed(config, work, labelled=True)
    except CaffeFileError as error:
        feed = calibration_feed(config, work)  # raises the same if it is not the labels
        return replace(feed, notes=(*feed.notes, f"accuracy is not measured because {error}"))


def input_shapes(config: Config, work: Prepared, net: FloatNet) -> dict[str, Shape]:
    """Return the shape of what each quantized layer reads, by the evaluation data.

    Of one sample, where the net lets the batch change.
    """
    feed = evaluation_feed(config, work)
    try:
        if not len(feed):
            raise PipelineError(NO_SAMPLES)
        size = 1 if fits(net, feed, 1) else min(evaluation(config, work).batch_size, len(feed))
        first = feed.for_net(next(feed.batches(size, 1)))
    finally:
        feed.close()
    shapes = net.shapes({name: x.shape for name, x in first.items()})
    return {name: shapes[value] for name, value in work.reads(net.net).items()}


def fits(net: FloatNet, feed: Feed, size: int) -> bool:
    """Whether a net takes so many samples at a time: the layers of some are made for one size."""
    first = feed.for_net(next(feed.batches(size, 1)))
    try:
        net.shapes({name: x.shape for name, x in first.items()})
    except NetError:
        return False
    return True


def look_at_data(config: Config, work: Prepared, *, device: str = "cpu") -> Looked:
    """Read a first sample of all data and see whether the net can take it.

    Raises
    ------
    ConfigError, PipelineError, caffeio.CaffeFileError, caffeio.NetError
        What would end the run after the calibration; a sample at fault is named.
    """
    c, e = work.calibrate, evaluation(config, work)
    compared_blobs(work.net, e.outputs)
    net = FloatNet(work.fused.net)
    feed = calibration_feed(config, work)
    try:
        feed.batches(c.batch_size, c.batch_num)  # raises if there are too few
        first = check_data(net, feed, c.batch_size, "calibrate.data")
        doubts = _norm_doubts(work, feed, device)
    finally:
        feed.close()
    observed = feed
    feed = evaluation_feed(config, work)
    try:
        count = len(feed)
        if e.batch_num is not None:
            feed.batches(e.batch_size, e.batch_num)
            count = e.batch_size * e.batch_num
        second = check_data(net, feed, e.batch_size, "evaluate.data")
        _check_metric(config, work, feed, second.shapes)
        shared = _shared(observed, feed, count)
    finally:
        feed.close()
    if _on_calibration(config, work):  # the same would be said twice
        said = {note.removeprefix("calibrate.data: ") for note in first.notes}
        new = [n for n in second.notes if n.removeprefix("evaluate.data: ") not in said]
        second = replace(second, notes=tuple(new), warnings=())
    elif shared:
        note = f"{shared} of the {len(observed)} calibration samples are evaluated, too"
        second = replace(second, notes=(*second.notes, note))
    return Looked(
        first.shapes,
        second.shapes,
        (*first.notes, *second.notes),
        (*first.warnings, *second.warnings, *doubts),
    )


def looked_at(config: Config, work: Prepared, *, device: str = "cpu") -> tuple[Prepared, Looked]:
    """Look at the data, and add what it tells to notes and warnings."""
    looked = look_at_data(config, work, device=device)
    notes = [*work.notes, *looked.notes]
    if config.evaluate is None:
        notes.append("no [evaluate] in the config: compared on the calibration samples")
    warnings = (*work.warnings, *looked.warnings)
    return replace(work, notes=tuple(notes), warnings=warnings), looked


def no_accuracy(metric: str, reason: str, key: str = "fallback.metric") -> ConfigError:
    """Return the error of a search whose metric cannot be measured."""
    why = f" ({reason})" if reason else ""
    return ConfigError(
        f"{key} = '{metric}' needs labels in evaluate.data, and an output "
        f"with a score for each class{why}"
    )


def _check_metric(config: Config, work: Prepared, feed: Feed, shapes: dict[str, Shape]) -> None:
    """Raise if a metric that the config asks for cannot be measured on the first sample."""
    wanted = []
    if config.fallback is not None:
        wanted.append((config.fallback.metric, "fallback.metric"))
    if config.nuq is not None and config.nuq.max_drop is not None:
        wanted.append((config.nuq.metric, "nuq.metric"))
    for metric, key in wanted:
        if metric in ("top1", "top5"):
            _check_ranks(config, work, feed, shapes, metric, key)


def _check_ranks(
    config: Config,
    work: Prepared,
    feed: Feed,
    shapes: dict[str, Shape],
    metric: str,
    key: str,
) -> None:
    values = FloatNet(work.net).shapes(shapes)
    last = {value.blob: shape for value, shape in sorted(values.items())}
    blobs = evaluation(config, work).outputs or judged_blobs(work.net)
    outputs = {b: np.zeros((1, *last[b][1:]), np.float32) for b in blobs if last.get(b)}
    accuracy = Accuracy()
    accuracy.update(outputs, next(feed.batches(1, 1)))
    if accuracy.top1 is None:
        raise no_accuracy(metric, accuracy.reason, key)


def _shared(observed: Feed, evaluated: Feed, count: int) -> int:
    """Return how many calibration samples are among the first `count` that are evaluated."""
    ours, theirs = (
        {(name, str(source.path)) for name, (source, _) in feed.inputs.items()}
        for feed in (observed, evaluated)
    )
    places = range(evaluated.start, evaluated.start + count)
    return sum(i in places for i in observed.places or ()) if ours == theirs else 0


def _norm_doubts(work: Prepared, feed: Feed, device: str) -> tuple[str, ...]:
    """Say where BatchNorm layers read other values than in training."""
    if not first_norms(work.net):
        return ()
    seen: tuple[NormSeen, ...] = ()
    for size in (_NORM_SAMPLES, work.calibrate.batch_size):
        batch = next(feed.batches(min(size, len(feed)), 1))
        try:
            seen = norms_seen(work.net, feed.for_net(batch), device=device)
        except NetError:  # its layers may be made for one batch size
            continue
        break
    return tuple(
        f"BatchNorm layer '{s.layer}' reads blob '{s.blob}', whose variance is {s.ratio:.2g} times "
        f"that of the training and whose mean is {s.shift:.2g} deviations off (medians over its "
        f"channels, {len(batch.names)} samples): is [transform] that of the training?"
        for s in seen
        if s.strange
    )

"""What `[evaluate]` asks for: models compared on samples, and the error of each layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from caffeio import Net, NetError
from pipeline.config.load import Config, EvaluateConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluators import Guarded, evaluator_maker
from pipeline.layers import Shape
from pipeline.quantize.activations import Activations
from pipeline.quantize.evaluate import (
    DecodedOnce,
    LayerError,
    ModelScore,
    Runnable,
    compare,
    layer_errors,
)
from pipeline.quantize.export import fakequant_net
from pipeline.quantize.feed import Feed, open_feed
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.outputs import compared_blobs, detection_blobs
from pipeline.quantize.prepare import Prepared
from pipeline.report.progress import Reporter
from pipeline.runtime.executor import FloatNet

__all__ = ["check_evaluation", "evaluate", "evaluation", "evaluator_of", "input_shapes"]

_NO_SAMPLES = "evaluate.data holds no samples from 'start' on"
#: Samples at a time when the error of each layer is measured: it holds every layer's output.
_LAYER_BATCH = 2
#: Bytes of evaluation samples held in memory from one model to the next.
_EVALUATE_MEMORY = 64 << 20


def input_shapes(config: Config, work: Prepared, net: FloatNet) -> dict[str, Shape]:
    """Return the shape of what each quantized layer reads, by the evaluation data.

    Of one sample, where the net lets the batch change.
    """
    e = evaluation(config, work)
    feed = open_feed(work.net, e.data, config.transform, "evaluate.data")
    try:
        if not len(feed):
            raise PipelineError(_NO_SAMPLES)
        size = 1 if _fits(net, feed, 1) else min(e.batch_size, len(feed))
        first = feed.for_net(next(feed.batches(size, 1)))
    finally:
        feed.close()
    shapes = net.shapes({name: x.shape for name, x in first.items()})
    return {name: shapes[value] for name, value in work.reads(net.net).items()}


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


def check_evaluation(config: Config, work: Prepared) -> None:
    """Check the evaluation data before the long work: raise what `evaluate` would after it.

    Raises
    ------
    ConfigError, PipelineError, caffeio.CaffeFileError
        If there are no samples to compare models on, or they do not fit the net; or if the
        evaluator fails on the first batch.
    """
    e = evaluation(config, work)
    blobs = compared_blobs(work.net, e.outputs)
    input_shapes(config, work, FloatNet(work.fused.net))
    make = evaluator_of(e)
    if make is None:
        return
    metrics = make()
    feed = open_feed(work.net, e.data, config.transform, "evaluate.data")
    try:
        batch = next(feed.batches(min(e.batch_size, len(feed)), 1))
    finally:
        feed.close()
    names = (*blobs, *detection_blobs(work.net))
    metrics.update(FloatNet(work.net).forward(feed.for_net(batch), names), batch)
    if metrics.problem:
        raise PipelineError(f"evaluate.evaluator: {metrics.problem}")


def evaluator_of(e: EvaluateConfig) -> Callable[[], Guarded] | None:
    """Return what makes the evaluator that ``[evaluate]`` names; None without one.

    Raises
    ------
    ConfigError
        If it cannot be made.
    """
    if e.evaluator is None:
        if e.options or e.boxes:
            raise ConfigError("evaluate.options and evaluate.boxes need evaluate.evaluator")
        return None
    return evaluator_maker(e.evaluator, e.options, e.boxes)


def evaluate(
    config: Config, work: Prepared, before: Net, int8: Int8Net, device: str, reporter: Reporter
) -> tuple[tuple[ModelScore, ...], dict[str, LayerError]]:
    """Score the float, fakequant and integer nets, and measure the error of each layer.

    Parameters
    ----------
    config : Config
    work : Prepared
        Of the net that was quantized.
    before : Net
        The float net to compare with.
    int8 : Int8Net
    device : str
    reporter : Reporter
    """
    e = evaluation(config, work)
    blobs, detections = compared_blobs(work.net, e.outputs), detection_blobs(work.net)
    models: dict[str, Callable[[], Runnable]] = {
        "float": lambda: FloatNet(before, device=device),
        "fakequant": lambda: FloatNet(fakequant_net(int8.net, int8.layers), device=device),
        "int8": lambda: int8,
    }
    feed = open_feed(work.net, e.data, config.transform, "evaluate.data")
    try:
        if not len(feed):
            raise PipelineError(_NO_SAMPLES)
        net = FloatNet(work.fused.net, device=device)
        size = _layer_batch(net, feed, e)
        few = -(-min(e.layer_samples, len(feed)) // size)
        samples = islice(feed.batches(size), few)
        tracked = reporter.track(samples, "error of each layer", few)
        errors = layer_errors(net, int8, (feed.for_net(b) for b in tracked))
        count = e.batch_num or -(-len(feed) // e.batch_size)
        with Activations(_EVALUATE_MEMORY) as values:
            batches = feed.batches(e.batch_size, e.batch_num)
            decoded = DecodedOnce((replace(b, inputs=feed.for_net(b)) for b in batches), values)
            scores = compare(
                models,
                lambda name: reporter.track(decoded, f"evaluate {name}", count),
                blobs,
                detections=detections,
                evaluator=evaluator_of(e),
            )
        return scores, errors
    finally:
        feed.close()


def _layer_batch(net: FloatNet, feed: Feed, e: EvaluateConfig) -> int:
    """Return how many samples at a time serve for the errors of layers."""
    size = min(_LAYER_BATCH, max(e.layer_samples, 1), len(feed))
    return size if _fits(net, feed, size) else e.batch_size


def _fits(net: FloatNet, feed: Feed, size: int) -> bool:
    """Whether a net takes so many samples at a time: the layers of some are made for one size."""
    first = feed.for_net(next(feed.batches(size, 1)))
    try:
        net.shapes({name: x.shape for name, x in first.items()})
    except NetError:
        return False
    return True

"""What `[evaluate]` asks for: models compared on samples, and the error of each layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from caffeio import Net
from pipeline.config.load import Config, EvaluateConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluators import Guarded, evaluator_maker
from pipeline.jobs.data import NO_SAMPLES, evaluation, evaluation_feed, fits, input_shapes
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
from pipeline.quantize.feed import Feed
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.outputs import compared_blobs, detection_blobs
from pipeline.quantize.prepare import Prepared
from pipeline.report.progress import Reporter
from pipeline.runtime.executor import FloatNet

__all__ = ["check_evaluation", "check_evaluator", "evaluate", "evaluator_of"]

#: Samples at a time when the error of each layer is measured: it holds every layer's output.
_LAYER_BATCH = 2
#: Bytes of evaluation samples held in memory from one model to the next.
_EVALUATE_MEMORY = 64 << 20


def check_evaluation(config: Config, work: Prepared) -> None:
    """Check the evaluation data before the long work: raise what `evaluate` would after it.

    Raises
    ------
    ConfigError, PipelineError, caffeio.CaffeFileError
        If there are no samples to compare models on, or they do not fit the net; or as
        `check_evaluator`.
    """
    compared_blobs(work.net, evaluation(config, work).outputs)
    input_shapes(config, work, FloatNet(work.fused.net))
    check_evaluator(config, work)


def check_evaluator(config: Config, work: Prepared, *, device: str = "cpu") -> None:
    """Run the evaluator on a first batch of the float net.

    Raises
    ------
    ConfigError, PipelineError
        If it cannot be made, or fails.
    """
    e = evaluation(config, work)
    make = evaluator_of(e)
    if make is None:
        return
    metrics = make()
    feed = evaluation_feed(config, work)
    try:
        batch = next(feed.batches(min(e.batch_size, len(feed)), 1))
    finally:
        feed.close()
    names = (*compared_blobs(work.net, e.outputs), *detection_blobs(work.net))
    net = FloatNet(work.net, device=device)
    metrics.update(net.forward(feed.for_net(batch), names), batch)
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
    feed = evaluation_feed(config, work)
    try:
        if not len(feed):
            raise PipelineError(NO_SAMPLES)
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
    return size if fits(net, feed, size) else e.batch_size

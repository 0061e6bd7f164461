"""What a search for a better net is judged by: one number, on the evaluation samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from pipeline.config.load import Config
from pipeline.errors import ConfigError
from pipeline.jobs.data import evaluation, evaluation_feed, no_accuracy
from pipeline.jobs.evaluation import evaluator_of
from pipeline.quantize.corrections import Corrected
from pipeline.quantize.evaluate import ModelScore, Runnable, compare
from pipeline.quantize.improve import judged_blobs
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.measure import mean_decibels
from pipeline.quantize.outputs import detection_blobs
from pipeline.quantize.prepare import Prepared
from pipeline.runtime.executor import FloatNet

__all__ = ["Metric"]


class Metric:
    """Measures nets on the evaluation samples, which are decoded once.

    Parameters
    ----------
    config : Config
    work : Prepared
        Of the net that is quantized.
    name : str
        "top1", "top5", "sqnr", or what the evaluator calls its own.
    device : str
    key : str
        Where the name stands in the config, for errors.

    Attributes
    ----------
    exact : float
        Of the float net; inf for "sqnr".
    input_shapes : dict of str to tuple of int
        Of the first batch.

    Raises
    ------
    ConfigError
        If the metric cannot be measured on the data.
    """

    def __init__(self, config: Config, work: Prepared, name: str, device: str, key: str) -> None:
        e = evaluation(config, work)
        feed = evaluation_feed(config, work)
        try:
            batches = feed.batches(e.batch_size, e.batch_num)
            self._batches = [replace(b, inputs=feed.for_net(b)) for b in batches]
        finally:
            feed.close()
        self.input_shapes = {name: x.shape for name, x in self._batches[0].inputs.items()}
        self._name, self._device, self._key = name, device, key
        self._blobs = tuple(e.outputs) or judged_blobs(work.net)
        self._float = FloatNet(work.net, device=device)
        self._detections, self._evaluator = detection_blobs(work.net), evaluator_of(e)
        (score,) = self._compare({"float": lambda: self._float})
        self.exact = float("inf") if self._name == "sqnr" else self._of(score)

    def __call__(self, result: Corrected) -> float:
        """Return the metric of a quantized net."""
        net = Int8Net.of_fused(result.net, result.record, device=self._device)
        models: dict[str, Callable[[], Runnable]] = {
            "float": lambda: self._float,
            "int8": lambda: net,
        }
        score = self._compare(models)[1]
        if self._name == "sqnr":
            return mean_decibels(output.sample_sqnr for output in score.outputs)
        return self._of(score)

    def _compare(self, models: Mapping[str, Callable[[], Runnable]]) -> tuple[ModelScore, ...]:
        return compare(
            models,
            lambda name: self._batches,
            self._blobs,
            detections=self._detections,
            evaluator=self._evaluator,
        )

    def _of(self, score: ModelScore) -> float:
        """Return the metric of one model."""
        if self._name in score.metrics:
            return score.metrics[self._name]
        rank = getattr(score, self._name) if self._name in ("top1", "top5") else None
        if rank is not None:
            return float(rank)
        if self._name in ("top1", "top5"):
            raise no_accuracy(self._name, score.unranked, self._key)
        names = ", ".join(("top1", "top5", "sqnr", *score.metrics))
        because = f" ({score.problem})" if score.problem else ""
        raise ConfigError(f"{self._key} = '{self._name}' is none of {names}{because}")

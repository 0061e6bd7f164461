"""``caffe-quant calibration --evaluator``: a file that feeds the net and measures it itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import caffeio
from pipeline.commands.pycaffe import standing_in
from pipeline.config.calibrate import CalibrateConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.jobs.observer import Calibration
from pipeline.python_file import place_in, run_file
from pipeline.report.progress import Reporter

__all__ = ["calibrate_by"]


def calibrate_by(
    evaluator: Path,
    model: Path,
    weights: Path,
    settings: CalibrateConfig,
    save_path: str,
    reporter: Reporter,
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Quantize on the batches that an evaluator runs through the net.

    Parameters
    ----------
    evaluator : Path
        A Python file with one class that has ``calibration(model_file, weights_file)`` and
        ``evaluate(model_file, weights_file) -> metric``, written for pycaffe.
    model, weights : Path
    settings : CalibrateConfig
        The first ``batch_num`` passes of ``calibration`` are observed.
    save_path : str
        Folder and prefix.
    reporter : Reporter

    Returns
    -------
    files : dict of str to Path
    metrics : dict of str to object
        What ``evaluate`` returns for the float model and the fakequant one.

    Raises
    ------
    ConfigError
        If the file has no such class, or fails: with its line.
    PipelineError
        If it runs nothing through the net.
    """
    observer = Calibration(caffeio.read_net(model, weights), settings)
    left = [observer.batch_num]

    def watch(path: Path, inputs: Mapping[str, np.ndarray]) -> None:
        if path == model and left[0]:
            observer.feed(inputs)
            left[0] -= 1

    with standing_in(watch):
        made = _instance(evaluator)
        reporter.say(f"calibrate: {evaluator.name} feeds the net ...")
        _call(evaluator, made.calibration, model, weights)
        if left[0] == observer.batch_num:
            raise PipelineError(f"--evaluator: calibration() of '{evaluator}' runs nothing")
        left[0] = 0
        files = observer.save("Both", save_path)
        metrics = {}
        for name, net in (
            ("float", (model, weights)),
            ("fakequant", (files["fakequant_prototxt"], files["fakequant_weights"])),
        ):
            reporter.say(f"evaluate {name} ...")
            metrics[name] = _call(evaluator, made.evaluate, *net)
    return files, metrics


def _instance(path: Path) -> Any:
    """Return an object of the one class that the file defines as an evaluator."""
    module = run_file(path, "--evaluator")
    found = [
        x for x in vars(module).values()
        if isinstance(x, type)
        and x.__module__ == module.__name__
        and callable(getattr(x, "calibration", None))
        and callable(getattr(x, "evaluate", None))
    ]  # fmt: skip
    if len(found) != 1:
        raise ConfigError(
            f"--evaluator: '{path}' defines {len(found)} classes with calibration(model, weights) "
            "and evaluate(model, weights); one is needed"
        )
    try:
        return found[0]()
    except Exception as error:
        raise ConfigError(f"--evaluator: {place_in(path, error)}") from error


def _call(path: Path, method: Callable[[str, str], Any], model: Path, weights: Path) -> Any:
    try:
        return method(str(model), str(weights))
    except (PipelineError, caffeio.NetError):
        raise
    except Exception as error:
        raise ConfigError(f"--evaluator: {place_in(path, error)}") from error

"""Quantize Caffe models to INT8: the pipeline that joins `caffeio` and `kernels`.

By calibration, or by training, which needs PyTorch:

>>> report = pipeline.quantize_model("config.toml")  # doctest: +SKIP
>>> report = pipeline.retrain_model("config.toml")  # doctest: +SKIP

What the nets compute:

>>> out = pipeline.FloatNet(net).forward({"data": x})  # doctest: +SKIP
>>> out = report.int8_net().forward({"data": x})  # doctest: +SKIP

Batches from a loop of one's own, models from a record, and written models run again:

>>> observer = pipeline.Calibration(net)  # doctest: +SKIP
>>> pipeline.convert_model(net, "record.txt").save("Both", "results/net")  # doctest: +SKIP
>>> pipeline.load_quantized("net_deploy_model.prototxt", "net_deploy_weights.caffemodel")
... # doctest: +SKIP

Which layers lose most:

>>> worst = pipeline.layer_sensitivity("config.toml")[0]  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.jobs.calibration import quantize_model
    from pipeline.jobs.observer import Calibration, create_config
    from pipeline.jobs.record import convert_model
    from pipeline.jobs.sensitivity import layer_sensitivity
    from pipeline.quantize.int8_net import Int8Net
    from pipeline.quantize.load import load_quantized
    from pipeline.retrain.job import retrain_model, train_model
    from pipeline.runtime.executor import FloatNet
    from pipeline.runtime.state import State

__version__ = "0.2.0"

__all__ = [
    "Calibration",
    "FloatNet",
    "Int8Net",
    "State",
    "convert_model",
    "create_config",
    "layer_sensitivity",
    "load_quantized",
    "quantize_model",
    "retrain_model",
    "train_model",
]

_HOMES = {
    "Calibration": "jobs.observer",
    "FloatNet": "runtime.executor",
    "Int8Net": "quantize.int8_net",
    "State": "runtime.state",
    "convert_model": "jobs.record",
    "create_config": "jobs.observer",
    "layer_sensitivity": "jobs.sensitivity",
    "load_quantized": "quantize.load",
    "quantize_model": "jobs.calibration",
    "retrain_model": "retrain.job",
    "train_model": "retrain.job",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: the command line must answer at once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
    import importlib

    from pipeline.installed import check_kernels

    check_kernels()
    return getattr(importlib.import_module(f"pipeline.{_HOMES[name]}"), name)

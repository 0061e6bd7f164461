"""From a float net and images to its INT8 form: our way and the peers', as users do it."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from caffeio import Net
from caffeio.record import Record
from pipeline import FloatNet, Int8Net
from pipeline.config.calibrate import Algorithm, CalibrateConfig, MinmaxQuantize
from pipeline.quantize.assign import layer_plan
from pipeline.quantize.calibrate import search
from pipeline.quantize.eligibility import judge
from pipeline.quantize.fuse import fuse
from pipeline.quantize.integers import layer_record
from pipeline.quantize.observe import observe

__all__ = ["nncf_int8", "on_cores", "ort_int8", "our_int8", "our_record"]


def our_int8(
    net: Net, batches: Sequence[np.ndarray], *, minmax: bool = False, symmetric: bool = False
) -> Int8Net:
    """Calibrate with the default settings, or by the whole range as the peers do.

    With `symmetric` data has no offset, for runtimes that know none.
    """
    return Int8Net(net, our_record(net, batches, minmax=minmax, symmetric=symmetric))


def our_record(
    net: Net, batches: Sequence[np.ndarray], *, minmax: bool = False, symmetric: bool = False
) -> Record:
    """Return the record that `our_int8` runs by."""
    common = Algorithm(minmax_quantize=MinmaxQuantize()) if minmax else Algorithm()
    config = CalibrateConfig(common_config=common, activation_offset=not symmetric)
    (blob,) = net.inputs
    runner = FloatNet(fuse(net).net)
    quantized_names = {v.layer for v in judge(runner.net) if v.quantize}
    plans = {x.name: layer_plan(x, config) for x in runner.net.layers if x.name in quantized_names}
    seen = observe(runner, plans, ({blob: batch} for batch in batches), len(batches))
    params = search(runner.net, plans, seen, runner.device)
    layers = {
        layer.name: layer_record(
            layer,
            params[layer.name],
            channel_wise=plans[layer.name].channel_wise,
            shape=seen.shapes[link.reads[0]],
            skip_fusion=False,
        )
        for layer, link in zip(runner.net.layers, runner.net.links, strict=True)
        if layer.name in plans
    }
    return Record(layers)


class _Reader:
    """Batches as ONNX Runtime's calibration asks for them."""

    def __init__(self, blob: str, batches: Sequence[np.ndarray]) -> None:
        self._rest = iter(batches)
        self._blob = blob

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, or None."""
        batch = next(self._rest, None)
        return None if batch is None else {self._blob: batch}


def ort_int8(model: bytes, batches: Sequence[np.ndarray], *, method: str = "MinMax") -> bytes:
    """Quantize an ONNX model as ONNX Runtime's users do: QDQ, a scale for each channel."""
    onnx: Any = import_module("onnx")
    tools: Any = import_module("onnxruntime.quantization")
    blob = onnx.load_from_string(model).graph.input[0].name
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, result = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model)
        tools.quantize_static(
            source,
            result,
            _Reader(blob, batches),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            calibrate_method=getattr(tools.CalibrationMethod, method),
        )
        return result.read_bytes()


def nncf_int8(model: bytes, batches: Sequence[np.ndarray], **options: Any) -> Any:
    """Quantize by NNCF, OpenVINO's own way; returns its model. By default as it comes."""
    nncf: Any = import_module("nncf")
    openvino: Any = import_module("openvino")
    with _quiet():
        source = openvino.Core().read_model(model, b"")
        dataset = nncf.Dataset(list(batches))
        return nncf.quantize(source, dataset, subset_size=len(batches), **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep advice of the quantizers, and bars of their progress, off the table."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(before)


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Keep threads begun within on so many cores: quantizers do not let one choose."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)

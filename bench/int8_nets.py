"""Workloads of whole nets in INT8, each quantized by its own tool, and of that quantizing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from bench.mnn_nets import mnn_int8
from bench.models import Model, our_float, read_model
from bench.ncnn_nets import ncnn_run, read_table
from bench.peers import onnx_session, openvino_run
from bench.quantizers import nncf_int8, on_cores, ort_int8, our_int8
from bench.shapes import NETS
from bench.workload import OURS, Mismatch, Run, Score, Side, Workload
from pipeline.export.tables import ncnn_table

__all__ = ["workloads"]

#: Images an INT8 net is calibrated on before it is timed.
_FEW = 8
#: Images of a workload of calibration, and how many at a time.
_IMAGES, _BATCH = 32, 8
#: A quantized net further from its float net is broken: good ones reach 0.2 on noise.
_BROKEN = 0.7
#: Nearer than this, two nets differ by the order of float sums alone.
_SAME = 1e-4


def _ours(model: Model, _threads: int) -> Run:
    """Set our integer net up, calibrated with the default settings."""
    runner = our_int8(model.net, model.noise(_FEW, 1))
    (output,) = model.net.outputs
    return lambda: runner.forward({model.blob: model.x})[output]


def _ort_model(model: Model) -> bytes:
    return ort_int8(model.onnx(), model.noise(_FEW, len(model.x)))


def _ort(model: Model, threads: int, exact: bool = False) -> Run:
    session = onnx_session(_ort_model(model), threads, exact=exact)
    return lambda: session.run(None, {model.blob: model.x})[0]


def _openvino(model: Model, threads: int) -> Run:
    """Set OpenVINO up on the model that ONNX Runtime's quantizer makes."""
    return openvino_run(_ort_model(model), model.x, threads)


def _nncf(model: Model, threads: int) -> Run:
    """Set OpenVINO up on the model that its own quantizer makes."""
    quantized = nncf_int8(model.onnx(), model.noise(_FEW, len(model.x)))
    return openvino_run(quantized, model.x, threads)


def _mnn(model: Model, threads: int, caffe: bool) -> Run:
    return mnn_int8(model, model.noise(_FEW, 1), threads, caffe=caffe)


def _ncnn(model: Model, threads: int) -> Run:
    """Set ncnn up by our table: its own quantizer is no part of its wheel."""
    int8 = our_int8(model.net, model.noise(_FEW, 1), symmetric=True)
    table = read_table(ncnn_table(int8.net, int8.layers))
    return ncnn_run(int8.net, model.x, threads, table=table)


def _distance(model: Model, its: np.ndarray) -> float:
    """Return the root mean square distance to the float net's result, relative to that."""
    error = np.square(its.ravel() - model.result.ravel()).mean()
    share = float(np.sqrt(error / np.square(model.result).mean()))
    return share if not share <= _SAME else 0.0


def _within(limit: float, model: Model, _ours: np.ndarray, its: np.ndarray) -> None:
    if not (share := _distance(model, its)) <= limit:
        raise Mismatch(f"{share:.0%} off the float net")


Quantizer = Callable[[Model, Sequence[np.ndarray]], object]


def _calibration(quantizer: Quantizer, model: Model, threads: int) -> Run:
    """Set up the way from the float net and images to the INT8 net."""
    batches = model.noise(_IMAGES, _BATCH)

    def run() -> None:
        with on_cores(threads):
            quantizer(model, batches)

    return run  # the first call, which is not timed, writes the ONNX model


def _search(model: Model, batches: Sequence[np.ndarray]) -> object:
    return our_int8(model.net, batches)


def _minmax(model: Model, batches: Sequence[np.ndarray]) -> object:
    return our_int8(model.net, batches, minmax=True)


def _ort_minmax(model: Model, batches: Sequence[np.ndarray]) -> object:
    return ort_int8(model.onnx(_BATCH), batches)


def _nncf_default(model: Model, batches: Sequence[np.ndarray]) -> object:
    return nncf_int8(model.onnx(_BATCH), batches)


_SIDES = (
    Side(OURS, _ours, partial(_within, _BROKEN)),
    Side("onnxruntime", _ort),
    Side("onnxruntime", partial(_ort, exact=True), label="onnxruntime exact"),
    Side("openvino", _openvino),
    Side("nncf", _nncf, label="openvino nncf"),
    Side("mnn", partial(_mnn, caffe=True), label="mnn caffe"),
    Side("mnn", partial(_mnn, caffe=False), label="mnn onnx"),
    Side("ncnn", _ncnn, label="ncnn, our table"),
    Side(OURS, partial(our_float, fused=True), partial(_within, _SAME), "ours float"),
)

_CALIBRATIONS = (
    Side(OURS, partial(_calibration, _search)),
    Side(OURS, partial(_calibration, _minmax), label="ours minmax"),
    Side("onnxruntime", partial(_calibration, _ort_minmax), label="onnxruntime minmax"),
    Side("nncf", partial(_calibration, _nncf_default)),
)


def workloads(batch: int) -> tuple[Workload, ...]:
    """Return the workloads of this file, INT8 nets for so many images at a time."""
    nets = [
        Workload(
            "int8 net",
            files.name + (f" x{batch}" if batch > 1 else ""),
            partial(read_model, files, batch),
            _SIDES,
            missing=files.missing,
            kind="int8 net",
            score=Score("off", _distance),
        )
        for files in NETS
    ]
    calibrations = [
        Workload(
            "calibration",
            f"{files.name}, {_IMAGES} images",
            partial(read_model, files, 1),
            _CALIBRATIONS,
            missing=files.missing,
            short=False,
            most_rounds=3,
        )
        for files in NETS
        if files.name == "MobileNetV2"
    ]
    return (*nets, *calibrations)

"""Workloads of whole nets in float32; OpenCV and MNN read the Caffe models by themselves."""

from __future__ import annotations

import tempfile
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bench.models import Model, our_float, read_model
from bench.ncnn_model import ncnn_run
from bench.peers import onnx_session, openvino_run, silent
from bench.shapes import NETS
from bench.workload import OURS, Mismatch, Run, Side, Workload, near
from pipeline.quantize.fuse import fuse

__all__ = ["workloads"]


def _opencv(model: Model, _threads: int) -> Run:
    cv2: Any = import_module("cv2")
    reader = cv2.dnn.readNetFromCaffe(*map(str, model.files.paths))

    def run() -> np.ndarray:
        reader.setInput(model.x, model.blob)  # without it the last result would come again
        return reader.forward()

    return run


def _ort(model: Model, threads: int) -> Run:
    session = onnx_session(model.onnx(), threads)
    return lambda: session.run(None, {model.blob: model.x})[0]


def _openvino(model: Model, threads: int) -> Run:
    return openvino_run(model.onnx(), model.x, threads)


def _mnn(model: Model, threads: int) -> Run:
    """Convert the Caffe model by MNN's own tool; all in float32, as on the other sides."""
    with silent(), tempfile.TemporaryDirectory() as folder:
        mnn, tools = import_module("MNN"), import_module("_tools")
        prototxt, caffemodel = map(str, model.files.paths)
        converted = str(Path(folder) / "net.mnn")
        words = ["--modelFile", caffemodel, "--prototxt", prototxt, "--MNNModel", converted]
        tools.mnnconvert(["mnnconvert", "-f", "CAFFE", *words])
        interpreter: Any = mnn.Interpreter(converted)
    settings = {"numThread": threads, "precision": "high", "backend": "CPU"}
    with silent():
        session = interpreter.createSession(settings)
    given, found = interpreter.getSessionInput(session), interpreter.getSessionOutput(session)
    interpreter.resizeTensor(given, model.x.shape)
    interpreter.resizeSession(session)

    def tensor(values: np.ndarray) -> Any:
        return mnn.Tensor(
            values.shape, mnn.Halide_Type_Float, values, mnn.Tensor_DimensionType_Caffe
        )

    x, y = tensor(model.x), tensor(np.zeros(found.getShape(), np.float32))

    def run() -> np.ndarray:
        given.copyFrom(x)
        interpreter.runSession(session)
        found.copyToHostTensor(y)
        return np.array(y.getNumpyData())

    return run


def _ncnn(model: Model, threads: int) -> Run:
    """Write the folded net in ncnn's format."""
    net = fuse(model.net).net
    (output,) = (str(v) for v in net.links[-1].writes)
    run = ncnn_run(net, {}, threads)
    return lambda: np.stack([run(image, output) for image in model.x])


def _same(model: Model, ours: np.ndarray, its: np.ndarray) -> None:
    """Compare the values alone: readers differ in axes of length 1."""
    if ours.size != its.size:
        raise Mismatch(f"shape {its.shape}, ours {ours.shape}")
    near(1e-4)(model, ours.ravel(), its.ravel())


_SIDES = (
    Side(OURS, our_float),
    Side(OURS, partial(our_float, fused=True), _same, "ours fused"),
    Side("opencv caffe", _opencv, _same, "opencv"),
    Side("onnxruntime", _ort, _same),
    Side("openvino", _openvino, _same),
    Side("mnn", _mnn, _same, "mnn caffe"),
    Side("ncnn", _ncnn, _same),
)


def workloads(batch: int) -> tuple[Workload, ...]:
    """Return the workloads of this file, for so many images at a time."""
    return tuple(
        Workload(
            "float net",
            files.name + (f" x{batch}" if batch > 1 else ""),
            partial(read_model, files, batch),
            _SIDES,
            missing=files.missing,
            kind="float net",
        )
        for files in NETS
    )

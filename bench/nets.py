"""Workloads of whole nets in float32, OpenCV and MNN with their own readers of Caffe models."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from bench.mnn_nets import mnn_float
from bench.models import Model, our_float, read_model
from bench.ncnn_nets import ncnn_run
from bench.peers import onnx_session, openvino_run
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


def _ncnn(model: Model, threads: int) -> Run:
    return ncnn_run(fuse(model.net).net, model.x, threads)


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
    Side("mnn", partial(mnn_float, caffe=True), _same, "mnn caffe"),
    Side("mnn", partial(mnn_float, caffe=False), _same, "mnn onnx"),
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

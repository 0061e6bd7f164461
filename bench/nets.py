"""Workloads of whole nets in float32, beside OpenCV's own reader of Caffe models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import caffeio
from bench.shapes import NETS, NetFiles
from bench.workload import OURS, Mismatch, Run, Side, Workload, near
from pipeline import FloatNet

__all__ = ["workloads"]


@dataclass(frozen=True)
class _Model:
    files: NetFiles
    net: caffeio.Net
    blob: str
    x: np.ndarray


def _model(files: NetFiles, batch: int) -> _Model:
    net = caffeio.read_net(*files.paths)
    shapes = {value.blob: shape for value, shape in FloatNet(net).shapes().items()}
    (blob,) = net.inputs
    x = np.random.default_rng(3).uniform(-1, 1, (batch, *shapes[blob][1:])).astype(np.float32)
    return _Model(files, net, blob, x)


def _ours(model: _Model, _threads: int, fused: bool = False) -> Run:
    from pipeline.fuse import fuse

    # folding BatchNorm and Scale: as calibration does, and OpenCV when it reads a net
    runner = FloatNet(fuse(model.net).net if fused else model.net)
    (output,) = model.net.outputs
    return lambda: runner.forward({model.blob: model.x})[output]


def _opencv(model: _Model, _threads: int) -> Run:
    cv2: Any = import_module("cv2")
    reader = cv2.dnn.readNetFromCaffe(*map(str, model.files.paths))

    def run() -> np.ndarray:
        reader.setInput(model.x, model.blob)  # without it the last result would come again
        return reader.forward()

    return run


def _same(model: _Model, ours: np.ndarray, its: np.ndarray) -> None:
    """Compare the values alone: readers differ in axes of length 1."""
    if ours.size != its.size:
        raise Mismatch(f"shape {its.shape}, ours {ours.shape}")
    near(1e-4)(model, ours.ravel(), its.ravel())


_SIDES = (
    Side(OURS, _ours),
    Side(OURS, partial(_ours, fused=True), _same, "ours fused"),
    Side("opencv caffe", _opencv, _same, "opencv"),
)


def workloads(batch: int) -> tuple[Workload, ...]:
    """Return the workloads of this file, for so many images at a time."""
    return tuple(
        Workload(
            "float net",
            files.name + (f" x{batch}" if batch > 1 else ""),
            partial(_model, files, batch),
            _SIDES,
            missing=files.missing,
        )
        for files in NETS
    )

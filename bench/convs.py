"""Workloads of float32 convolution, on the same layers as the INT8 ones."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import kernels
from bench.conv_data import ConvData, conv_data
from bench.int8_convs import our_float
from bench.peers import node, onnx_session
from bench.shapes import CONVS
from bench.workload import OURS, Run, Side, Workload, near

__all__ = ["workloads"]


def _whole(d: ConvData, _threads: int) -> Run:
    """Set up our convolution as a function of arrays: weights as they come, with each call."""
    return lambda: kernels.conv2d(d.x, d.w, d.bias, **d.geometry)


def _float_node(d: ConvData) -> bytes:
    return node("Conv", d.x, {"w": d.w, "bias": d.bias}, **d.onnx_geometry)


def _ort(d: ConvData, threads: int) -> Run:
    session = onnx_session(_float_node(d), threads)
    return lambda: session.run(None, {"x": d.x})[0]


def _opencv(d: ConvData, _threads: int) -> Run:
    cv2: Any = import_module("cv2")
    net = cv2.dnn.readNetFromONNX(np.frombuffer(_float_node(d), np.uint8))

    def run() -> np.ndarray:
        net.setInput(d.x)  # without it the last result would come again
        return net.forward()

    return run


def _torch(d: ConvData, _threads: int) -> Run:
    torch: Any = import_module("torch")
    x, w, bias = (torch.from_numpy(a) for a in (d.x, d.w, d.bias))
    s = d.shape

    def run() -> np.ndarray:
        with torch.inference_mode():
            return torch.conv2d(x, w, bias, s.stride, s.pad, 1, s.group).numpy()

    return run


_SIDES = (
    Side(OURS, our_float),
    Side(OURS, _whole, near(1e-4), "ours conv2d"),
    Side("onnxruntime", _ort, near(1e-4)),
    Side("opencv", _opencv, near(1e-4)),
    Side("torch", _torch, near(1e-4)),
)


def workloads(batch: int) -> tuple[Workload, ...]:
    """Return the workloads of this file, for so many images at a time."""
    return tuple(
        Workload(
            "float conv",
            shape.name if batch == 1 else f"{shape.name} x{batch}",
            partial(conv_data, shape, batch),
            _SIDES,
            shape.operations(batch),
            "float",
            kind=shape.kind,
            short=shape.short,
        )
        for shape in CONVS
    )

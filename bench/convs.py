"""Workloads of convolution: float32, and INT8 from int8 image to int8 result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import kernels
from bench.peers import node, onnx_session
from bench.shapes import CONVS, ConvShape
from bench.workload import OURS, Mismatch, Run, Side, Workload, near, within

__all__ = ["workloads"]

_X_SCALE = np.float32(0.02)
_X_OFFSET = -128


@dataclass(frozen=True)
class _Data:
    """Operands of one convolution: integers with their scales, and the floats they stand for."""

    shape: ConvShape
    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray
    xq: np.ndarray
    wq: np.ndarray
    bias_q: np.ndarray
    w_scale: np.ndarray
    result: kernels.QuantParams

    @property
    def geometry(self) -> dict[str, Any]:
        s = self.shape
        return {"stride": s.stride, "pad": s.pad, "group": s.group}

    @property
    def onnx_geometry(self) -> dict[str, Any]:
        s = self.shape
        return {"strides": [s.stride] * 2, "pads": [s.pad] * 4, "group": s.group}


def _data(shape: ConvShape, batch: int) -> _Data:
    rng = np.random.default_rng(2)
    per = shape.channels // shape.group
    xq = rng.integers(-128, 128, (batch, shape.channels, shape.size, shape.size), np.int8)
    # 7-bit weights: kernels that add pairs of products in 16 bits stay exact, too
    wq = rng.integers(-63, 64, (shape.outs, per, shape.kernel, shape.kernel), np.int8)
    bias_q = rng.integers(-5000, 5001, shape.outs, np.int32)
    w_scale = rng.uniform(0.001, 0.002, shape.outs).astype(np.float32)
    x = (xq.astype(np.float32) - _X_OFFSET) * _X_SCALE
    w = wq.astype(np.float32) * w_scale[:, None, None, None]
    # four standard deviations of a sum of such products fill the range
    spread = np.sqrt(float(np.square(x).mean()) * float(np.square(w).mean()) * wq[0].size)
    result = kernels.QuantParams(4 * spread / 128, 3)
    bias = bias_q.astype(np.float32) * (_X_SCALE * w_scale)
    return _Data(shape, x, w, bias, xq, wq, bias_q, w_scale, result)


def _our_int8(d: _Data, _threads: int) -> Run:
    stage = kernels.OutputStage(scale=_X_SCALE * d.w_scale, params=d.result)
    return lambda: kernels.conv2d_int8(
        d.xq, d.wq, d.bias_q, x_offset=_X_OFFSET, output=stage, **d.geometry
    )


def _our_float(d: _Data, _threads: int) -> Run:
    return lambda: kernels.conv2d(d.x, d.w, d.bias, **d.geometry)


def _ort_int8(d: _Data, threads: int) -> Run:
    """Set up QLinearConv on unsigned data, ONNX Runtime's fast way on this kind of CPU."""
    x = (d.xq.astype(np.int16) + 128).astype(np.uint8)
    constants: dict[str, np.ndarray] = {
        "x_scale": np.array(_X_SCALE),
        "x_zero": np.array(_X_OFFSET + 128, np.uint8),
        "w": d.wq,
        "w_scale": d.w_scale,
        "w_zero": np.zeros(d.shape.outs, np.int8),
        "y_scale": np.array(d.result.scale, np.float32),
        "y_zero": np.array(d.result.offset + 128, np.uint8),
        "bias": d.bias_q,
    }
    session = onnx_session(node("QLinearConv", x, constants, **d.onnx_geometry), threads)
    return lambda: session.run(None, {"x": x})[0]


def _same_bytes(d: _Data, ours: np.ndarray, its: np.ndarray) -> None:
    """Compare signed with unsigned; a product beside the middle of two steps may differ."""
    within(1, 1e-3)(d, ours, its.astype(np.int16) - 128)


def _half_a_step(d: _Data, ours: np.ndarray, its: np.ndarray) -> None:
    """Compare our INT8 result with our float one, which is not rounded."""
    real = (ours.astype(np.float32) - d.result.offset) * np.float32(d.result.scale)
    error = np.abs(real - np.clip(its, *d.result.range)).max()
    if not error <= 0.501 * d.result.scale:
        raise Mismatch(f"by {error / d.result.scale:.2f} steps")


def _float_node(d: _Data) -> bytes:
    return node("Conv", d.x, {"w": d.w, "bias": d.bias}, **d.onnx_geometry)


def _ort_float(d: _Data, threads: int) -> Run:
    session = onnx_session(_float_node(d), threads)
    return lambda: session.run(None, {"x": d.x})[0]


def _opencv_float(d: _Data, _threads: int) -> Run:
    cv2: Any = import_module("cv2")
    net = cv2.dnn.readNetFromONNX(np.frombuffer(_float_node(d), np.uint8))

    def run() -> np.ndarray:
        net.setInput(d.x)  # without it the last result would come again
        return net.forward()

    return run


def _torch_float(d: _Data, _threads: int) -> Run:
    torch: Any = import_module("torch")
    x, w, bias = (torch.from_numpy(a) for a in (d.x, d.w, d.bias))
    s = d.shape

    def run() -> np.ndarray:
        with torch.inference_mode():
            return torch.conv2d(x, w, bias, s.stride, s.pad, 1, s.group).numpy()

    return run


_FLOAT = (
    Side(OURS, _our_float),
    Side("onnxruntime", _ort_float, near(1e-4)),
    Side("opencv", _opencv_float, near(1e-4)),
    Side("torch", _torch_float, near(1e-4)),
)

_INT8 = (
    Side(OURS, _our_int8),
    Side("onnxruntime", _ort_int8, _same_bytes),
    Side(OURS, _our_float, _half_a_step, "ours float"),
)


def workloads(batch: int) -> tuple[Workload, ...]:
    """Return the workloads of this file, for so many images at a time."""
    return tuple(
        Workload(
            group,
            shape.name if batch == 1 else f"{shape.name} x{batch}",
            partial(_data, shape, batch),
            sides,
            shape.operations(batch),
            bound,
        )
        for group, sides, bound in (("int8 conv", _INT8, "int8"), ("float conv", _FLOAT, "float"))
        for shape in CONVS
    )

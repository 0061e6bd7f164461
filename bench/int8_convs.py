"""Workloads of INT8 convolution: from 8-bit image to 8-bit result, weights packed before.

All operands fill their range, so that kernels which add pairs of products in 16 bits show
it: each side's share of wrong outputs is measured against exact arithmetic.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import kernels
from bench.conv_data import X_OFFSET, X_SCALE, ConvData, conv_data, steps_of, wrong_share
from bench.peers import node, onnx_session, openvino_run
from bench.shapes import CONVS
from bench.workload import OURS, Mismatch, Run, Score, Side, Workload

__all__ = ["our_float", "workloads"]

#: To channels last and back. Peers' data is unsigned, which is their fast way on these CPUs.
_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def _ours(d: ConvData, _threads: int, layout: str) -> Run:
    """Set ours up: "net" as a layer runs within a net, or from array to array."""
    stage = kernels.OutputStage(scale=X_SCALE * d.w_scale, params=d.result)
    run = kernels.prepare_conv2d(
        d.xq.shape, d.wq, d.bias_q, x_offset=X_OFFSET, output=stage,
        channels_last=layout != "nchw", **d.geometry,
    )  # fmt: skip
    if layout == "nchw":
        return lambda: run(d.xq)
    x = np.ascontiguousarray(d.xq.transpose(_TO_NHWC))
    if layout == "nhwc":
        return lambda: run(x).transpose(_TO_NCHW)
    stack = ExitStack()
    buffers = stack.enter_context(run.in_place())
    buffers.source[...] = x.astype(np.int16) + buffers.source_add

    def compute() -> np.ndarray:
        buffers.compute()
        return buffers.result.transpose(_TO_NCHW)

    compute.stack = stack  # type: ignore[attr-defined]  # as long as it may be run
    return compute


def our_float(d: ConvData, _threads: int) -> Run:
    """Set up our float convolution of the same operands, channels first."""
    run = kernels.prepare_conv2d(d.x.shape, d.w, d.bias, **d.geometry)
    return lambda: run(d.x)


def _constants(d: ConvData) -> dict[str, np.ndarray]:
    """Return what QLinearConv reads after its input, in its order."""
    return {
        "x_scale": np.array(X_SCALE),
        "x_zero": np.array(X_OFFSET + 128, np.uint8),
        "w": d.wq,
        "w_scale": d.w_scale,
        "w_zero": np.zeros(d.shape.outs, np.int8),
        "y_scale": np.array(d.result.scale, np.float32),
        "y_zero": np.array(d.result.offset + 128, np.uint8),
        "bias": d.bias_q,
    }


def _ort(d: ConvData, threads: int) -> Run:
    x = d.unsigned
    session = onnx_session(node("QLinearConv", x, _constants(d), **d.onnx_geometry), threads)
    return lambda: session.run(None, {"x": x})[0]


def _ort_nhwc(d: ConvData, threads: int) -> Run:
    """Set up ONNX Runtime's own QLinearConv, which keeps channels last from layer to layer."""
    x = np.ascontiguousarray(d.unsigned.transpose(_TO_NHWC))
    own = {"domain": "com.microsoft", "channels_last": 1}
    session = onnx_session(node("QLinearConv", x, _constants(d), **own, **d.onnx_geometry), threads)
    return lambda: session.run(None, {"x": x})[0].transpose(_TO_NCHW)


def _torch(d: ConvData, _threads: int, engine: str) -> Run:
    torch: Any = import_module("torch")
    ops, s = torch.ops.quantized, d.shape
    torch.backends.quantized.engine = engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these constructors are to be removed some day
        scales, zeros = torch.from_numpy(d.w_scale).double(), torch.zeros(s.outs, dtype=torch.long)
        w = torch._make_per_channel_quantized_tensor(torch.from_numpy(d.wq), scales, zeros, 0)
        x = torch._make_per_tensor_quantized_tensor(
            torch.from_numpy(d.unsigned), float(X_SCALE), X_OFFSET + 128
        )
    pair, pads = [s.stride] * 2, [s.pad] * 2
    packed = ops.conv2d_prepack(w, torch.from_numpy(d.bias), pair, pads, [1, 1], s.group)
    x = x.contiguous(memory_format=torch.channels_last)

    def run() -> np.ndarray:
        with torch.inference_mode():
            y = ops.conv2d(x, packed, d.result.scale, d.result.offset + 128)
            return y.int_repr().numpy()

    return run


def _qdq(d: ConvData) -> bytes:
    """Return an ONNX model of float Conv between quantizers, as OpenVINO takes INT8 work.

    Behind the quantizer at its input and before that at its output it changes the layout;
    OpenVINO's float layers see channels first, its INT8 layers need no change at all.
    """
    onnx: Any = import_module("onnx")
    make = onnx.helper.make_node
    values: Mapping[str, np.ndarray] = {**_constants(d), "bias": d.bias}
    nodes = [
        make("DequantizeLinear", ["x", "x_scale", "x_zero"], ["x_last"]),
        make("Transpose", ["x_last"], ["x_real"], perm=_TO_NCHW),
        make("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_real"], axis=0),
        make("Conv", ["x_real", "w_real", "bias"], ["y_real"], **d.onnx_geometry),
        make("Transpose", ["y_real"], ["y_last"], perm=_TO_NHWC),
        make("QuantizeLinear", ["y_last", "y_scale", "y_zero"], ["y"]),
    ]
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.UINT8
    n, s = len(d.xq), d.shape
    graph = onnx.helper.make_graph(
        nodes,
        "conv",
        [info("x", kind, [n, s.size, s.size, s.channels])],
        [info("y", kind, [n, s.out_size, s.out_size, s.outs])],
        [onnx.numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 13)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def _openvino(d: ConvData, threads: int) -> Run:
    x = np.ascontiguousarray(d.unsigned.transpose(_TO_NHWC))
    run = openvino_run(_qdq(d), x, threads)
    return lambda: run().transpose(_TO_NCHW)


def _exact(d: ConvData, _ours: np.ndarray, its: np.ndarray) -> None:
    if share := wrong_share(d, its):
        raise Mismatch(f"{share:.2%} of the outputs are wrong")


def _half_a_step(d: ConvData, ours: np.ndarray, its: np.ndarray) -> None:
    """Compare our INT8 result with our float one, which is not rounded."""
    real = (steps_of(d, ours).astype(np.float32) - d.result.offset) * np.float32(d.result.scale)
    error = np.abs(real - np.clip(its, *d.result.range)).max()
    if not error <= 0.501 * d.result.scale:
        raise Mismatch(f"by {error / d.result.scale:.2f} steps")


_SIDES = (
    Side(OURS, partial(_ours, layout="net"), _exact),
    Side(OURS, partial(_ours, layout="nhwc"), _exact, "ours nhwc"),
    Side(OURS, partial(_ours, layout="nchw"), _exact, "ours nchw"),
    Side("onnxruntime", _ort),
    Side("onnxruntime", _ort_nhwc, label="onnxruntime nhwc"),
    Side("fbgemm", partial(_torch, engine="fbgemm"), label="torch fbgemm"),
    Side("onednn", partial(_torch, engine="onednn"), label="torch onednn"),
    Side("openvino", _openvino),
    Side(OURS, our_float, _half_a_step, "ours float"),
)


def workloads(batch: int) -> tuple[Workload, ...]:
    """Return the workloads of this file, for so many images at a time."""
    return tuple(
        Workload(
            "int8 conv",
            shape.name if batch == 1 else f"{shape.name} x{batch}",
            partial(conv_data, shape, batch),
            _SIDES,
            shape.operations(batch),
            "int8",
            kind=shape.kind,
            short=shape.short,
            score=Score("wrong", wrong_share),
        )
        for shape in CONVS
    )

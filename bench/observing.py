"""Workloads over plain values: histogram, quantization, the search for a scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import kernels
from bench.peers import node, onnx_session
from bench.workload import OURS, Mismatch, Run, Side, Workload, within

__all__ = ["workloads"]

_VALUES = 1 << 22
_SEARCHED = 1 << 20
_BINS = 1 << 14
#: Extreme values kept beside the bins, as a calibration keeps them.
_TAIL = 128
_PARAMS = kernels.QuantParams(0.03, -7)


def _normal(count: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(count, dtype=np.float32)


def _relu(count: int) -> np.ndarray:
    return np.maximum(_normal(count), 0)


def _off_edges(make: Callable[[int], np.ndarray]) -> np.ndarray:
    """Make odd mantissas: a value on the edge of two bins may belong to either."""
    x = make(_VALUES)
    x.view(np.int32)[x != 0] |= 1
    return x


def _limit(x: np.ndarray) -> float:
    """Return the power of two above all magnitudes, up to which our bins reach."""
    return math.ldexp(1.0, math.frexp(float(np.abs(x).max()))[1])


def _our_histogram(x: np.ndarray, _threads: int, batches: int = 1) -> Run:
    parts = np.array_split(x, batches)

    def run() -> np.ndarray:
        hist = kernels.Histogram(half=_BINS // 2, tail=_TAIL)
        for part in parts:
            hist.update(part)
        return hist.counts

    return run


def _numpy_histogram(x: np.ndarray, _threads: int, batches: int = 1) -> Run:
    parts, limit = np.array_split(x, batches), _limit(x)
    return lambda: sum(np.histogram(p, bins=_BINS, range=(-limit, limit))[0] for p in parts)


def _torch_histogram(x: np.ndarray, _threads: int, batches: int = 1) -> Run:
    torch: Any = import_module("torch")
    parts, limit = [torch.from_numpy(p) for p in np.array_split(x, batches)], _limit(x)
    return lambda: sum(torch.histc(p, _BINS, -limit, limit) for p in parts).numpy()


def _nearly_same_counts(_x: np.ndarray, ours: np.ndarray, its: np.ndarray) -> None:
    """Allow a few values in the bin beside: torch subtracts the minimum in float32."""
    moved = float(np.abs(ours - its).sum()) / 2
    if its.sum() != ours.sum() or moved > 1e-3 * float(ours.sum()):
        raise Mismatch(f"{moved:g} of {ours.sum()} values in another bin")


def _numpy_steps(x: np.ndarray) -> np.ndarray:
    v = x / np.float32(_PARAMS.scale)
    whole = np.trunc(v)
    whole += np.copysign(np.abs(v - whole) >= np.float32(0.5), v)
    return np.clip(whole + np.float32(_PARAMS.offset), -128, 127)


def _numpy_quantize(x: np.ndarray, _threads: int) -> Run:
    return lambda: _numpy_steps(x).astype(np.int8)


def _ort_quantize(x: np.ndarray, threads: int) -> Run:
    scale, zero = np.float32(_PARAMS.scale), np.int8(_PARAMS.offset)
    model = node("QuantizeLinear", x, {"scale": np.array(scale), "y_zero": np.array(zero)})
    session = onnx_session(model, threads)
    return lambda: session.run(None, {"x": x})[0]


def _numpy_fake(x: np.ndarray, _threads: int) -> Run:
    offset, scale = np.float32(_PARAMS.offset), np.float32(_PARAMS.scale)
    return lambda: (_numpy_steps(x) - offset) * scale


def _torch_fake(x: np.ndarray, _threads: int) -> Run:
    torch: Any = import_module("torch")
    values, p = torch.from_numpy(x), _PARAMS
    fake = partial(torch.fake_quantize_per_tensor_affine, values, p.scale, p.offset, p.low, p.high)
    return lambda: fake().numpy()


def _numpy_ifmr(x: np.ndarray, _threads: int) -> Run:
    """Write the search down as its definition says, one candidate after the other."""
    f = np.float32
    rank = x.size - int(np.floor(f(0.999999) * f(x.size)))

    def run() -> kernels.QuantParams:
        high = max(np.partition(x, x.size - rank)[x.size - rank], f(0))
        low = min(np.partition(x, rank - 1)[rank - 1], f(0))
        count = int((f(1.3) - f(0.7)) / f(0.01) + f(1))
        best, chosen = np.inf, f(0)
        for i in range(count):
            top = (f(0.7) + f(i) * f(0.01)) * high
            scale = (top - low) / f(255)
            dequantized = np.rint(np.clip(x, low, top) / scale) * scale
            loss = np.mean((dequantized - x) ** 2, dtype=np.float64)
            if loss < best:
                best, chosen = loss, scale
        return kernels.QuantParams(float(chosen), -int(np.rint(low / chosen)) - 128)

    return run


def _same_params(_x: np.ndarray, ours: kernels.QuantParams, its: kernels.QuantParams) -> None:
    if ours.offset != its.offset or not math.isclose(ours.scale, its.scale, rel_tol=2e-7):
        raise Mismatch(f"{its}, ours {ours}")


def _counted(batches: int) -> tuple[Side, ...]:
    """Return the sides of a histogram, over all values at once or in batches."""
    return (
        Side(OURS, partial(_our_histogram, batches=batches)),
        Side("numpy", partial(_numpy_histogram, batches=batches), within(0, 0)),
        Side("torch", partial(_torch_histogram, batches=batches), _nearly_same_counts),
    )


def workloads() -> tuple[Workload, ...]:
    """Return the workloads of this file."""
    p = _PARAMS
    counted = _counted(1)
    quantized = (
        Side(OURS, lambda x, _: lambda: kernels.quantize(x, p)),
        Side("numpy", _numpy_quantize, within(0, 0)),
        # it rounds halves to even: a few values are one step off
        Side("onnxruntime", _ort_quantize, within(1, 1e-4)),
    )
    faked = (
        Side(OURS, lambda x, _: lambda: kernels.fake_quantize(x, p)),
        Side("numpy", _numpy_fake, within(0, 0)),
        # it multiplies by 1/scale: a few values are one step off
        Side("torch", _torch_fake, within(p.scale, 1e-3)),
    )
    searched = (
        Side(OURS, lambda x, _: lambda: kernels.ifmr(x)),
        Side("numpy", _numpy_ifmr, _same_params),
    )
    normal, relu = partial(_normal, _VALUES), partial(_off_edges, _relu)
    return (
        Workload(
            "histogram", "4M normal", partial(_off_edges, _normal), counted, 4 * _VALUES, "read"
        ),
        Workload("histogram", "4M ReLU", relu, counted, 4 * _VALUES, "read"),
        Workload("histogram", "8 batches of 512k ReLU", relu, _counted(8), 4 * _VALUES, "read"),
        Workload("histogram", "200 batches of 21k ReLU", relu, _counted(200), 4 * _VALUES, "read"),
        Workload("quantize", "4M normal", normal, quantized, 5 * _VALUES, "read"),
        Workload("fake_quantize", "4M normal", normal, faked, 8 * _VALUES, "read"),
        Workload("ifmr", "1M normal, 60 candidates", partial(_normal, _SEARCHED), searched),
    )

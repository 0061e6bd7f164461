"""The nets that sides share: read once, with an input, and as ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

import caffeio
from bench.shapes import NetFiles
from bench.workload import Run
from pipeline import FloatNet
from pipeline.export.onnx_graph import to_onnx
from pipeline.quantize.fuse import fuse

__all__ = ["Model", "our_float", "read_model"]


@dataclass(frozen=True)
class Model:
    """A net and an input of uniform noise: the work is the same for any image."""

    files: NetFiles
    net: caffeio.Net
    blob: str
    x: np.ndarray

    @cached_property
    def result(self) -> np.ndarray:
        """What the float net makes of the input."""
        return our_float(self, 1)()

    def onnx(self, batch: int | None = None) -> bytes:
        """Return the net, BatchNorm and Scale folded, in ONNX: one input, one output."""
        return _onnx(self.files, batch or len(self.x))

    def noise(self, count: int, batch: int) -> list[np.ndarray]:
        """Return batches of other images of the same kind, at least `count` images."""
        shape, rng = (batch, *self.x.shape[1:]), np.random.default_rng(5)
        return [rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(0, count, batch)]


def read_model(files: NetFiles, batch: int) -> Model:
    """Read a net and make its input."""
    net = caffeio.read_net(*files.paths)
    shapes = {value.blob: shape for value, shape in FloatNet(net).shapes().items()}
    (blob,) = net.inputs
    x = np.random.default_rng(3).uniform(-1, 1, (batch, *shapes[blob][1:])).astype(np.float32)
    return Model(files, net, blob, x)


@cache
def _onnx(files: NetFiles, batch: int) -> bytes:
    return to_onnx(fuse(caffeio.read_net(*files.paths)).net, batch).SerializeToString()


def our_float(model: Model, _threads: int, fused: bool = False) -> Run:
    """Set our float net up; folded, as calibration does it, and peers when they read a net."""
    runner = FloatNet(fuse(model.net).net if fused else model.net)
    (output,) = model.net.outputs
    return lambda: runner.forward({model.blob: model.x})[output]

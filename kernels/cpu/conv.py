"""2-D convolution: the product over windows, from channels first to channels first."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np

from kernels.conv import ConvGeometry, InPlace
from kernels.cpu.columns import conv_columns, held_columns, points
from kernels.cpu.engine.layer import Single
from kernels.cpu.engine.layers import ConvWeights, channels_alone, kernel_for
from kernels.cpu.engine.windows import conv_border
from kernels.cpu.planes import conv_planes, held_planes
from kernels.cpu.points import conv_points, conv_windows, fits_planes
from kernels.output import CheckedStage, float_stage

__all__ = ["conv2d", "conv2d_int8", "prepare"]

Shape = tuple[int, int, int, int]

#: Values of an image up to which turning it for the engine takes longer than packing saves.
_SMALL = 1 << 16


def _engine(
    shape: Shape,
    w: np.ndarray,
    bias: np.ndarray,
    x_offset: int,
    g: ConvGeometry,
    stage: CheckedStage,
    channels_last: bool = False,
) -> Single:
    """Return the layer as the engine runs it within a net, on channels last."""
    layer = ConvWeights.pack(kernel_for(w), w, bias, g, x_offset)
    return Single.make(
        layer.add,
        layer.packed.kernel,
        shape,
        (shape[0], w.shape[0], *g.out_size),
        conv_border(g, shape[2:]),
        x_offset,
        stage,
        channels_last,
    )


def _direct(shape: Shape, w: np.ndarray, g: ConvGeometry, once: bool) -> Callable | None:
    """Return a function of float32 data, weights and bias that leaves channels first.

    None where the engine is faster, of which a run `once` has to build the program, too.
    """
    if channels_alone(w, g.group):
        held = held_planes(shape, g)
        return partial(conv_planes, g=g, held=held) if held else None
    if fits_planes(shape, w, g):
        if points(g):
            return conv_points
        if once or math.prod(shape[1:]) < _SMALL:
            return partial(conv_windows, g=g)
        return None
    if points(g):
        return partial(conv_columns, g=g, held=None)
    held = held_columns(shape, w, g) if once else None
    return partial(conv_columns, g=g, held=held) if held else None


@dataclass(frozen=True)
class _Planar:
    """A float32 layer that runs without the engine; in place only the engine runs."""

    run: Callable
    w: np.ndarray
    bias: np.ndarray
    engine: Callable[[np.ndarray, np.ndarray], Single]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.run(x, self.w, self.bias)

    def in_place(self) -> AbstractContextManager[InPlace]:
        """See `kernels.PreparedConv.in_place`."""
        return self.engine(self.w, self.bias).in_place()


def prepare(
    shape: Shape,
    w: np.ndarray,
    bias: np.ndarray,
    x_offset: int,
    g: ConvGeometry,
    stage: CheckedStage,
    channels_last: bool = False,
) -> Callable[[np.ndarray], np.ndarray]:
    """See `kernels.prepare_conv2d`."""
    if w.dtype == np.float32 and not channels_last and (run := _direct(shape, w, g, False)):
        engine = partial(_engine, shape, x_offset=0, g=g, stage=stage)
        return _Planar(run, w.copy(), bias.copy(), engine)
    return _engine(shape, w, bias, x_offset, g, stage, channels_last)


def conv2d(x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """See `kernels.conv2d`."""
    run = _direct(x.shape, w, g, True)
    return run(x, w, bias) if run else _engine(x.shape, w, bias, 0, g, float_stage(len(w)))(x)


def conv2d_int8(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    x_offset: int,
    g: ConvGeometry,
    stage: CheckedStage,
) -> np.ndarray:
    """See `kernels.conv2d_int8`."""
    return _engine(x.shape, w, bias, x_offset, g, stage)(x)

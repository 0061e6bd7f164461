"""2-D convolution: the product over windows, from channels first to channels first."""

from __future__ import annotations

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu.columns import conv_columns
from kernels.cpu.engine.layer import Single
from kernels.cpu.engine.layers import ConvWeights, channels_alone, kernel_for
from kernels.cpu.engine.windows import conv_border
from kernels.cpu.planes import conv_planes
from kernels.output import CheckedStage, float_stage

__all__ = ["conv2d", "conv2d_int8", "prepare"]


def prepare(
    shape: tuple[int, int, int, int],
    w: np.ndarray,
    bias: np.ndarray,
    x_offset: int,
    g: ConvGeometry,
    stage: CheckedStage,
    channels_last: bool = False,
) -> Single:
    """See `kernels.prepare_conv2d`."""
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


def conv2d(x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """See `kernels.conv2d`."""
    y = conv_planes(x, w, bias, g) if channels_alone(w, g.group) else conv_columns(x, w, bias, g)
    return prepare(x.shape, w, bias, 0, g, float_stage(w.shape[0]))(x) if y is None else y


def conv2d_int8(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    x_offset: int,
    g: ConvGeometry,
    stage: CheckedStage,
) -> np.ndarray:
    """See `kernels.conv2d_int8`."""
    return prepare(x.shape, w, bias, x_offset, g, stage)(x)

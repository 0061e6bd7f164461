"""2-D deconvolution: outputs that the same taps reach are a convolution of their own."""

from __future__ import annotations

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu.engine.layer import Single
from kernels.cpu.engine.layers import DeconvWeights, kernel_for
from kernels.cpu.engine.windows import deconv_border
from kernels.output import CheckedStage, float_stage

__all__ = ["deconv2d", "deconv2d_int8"]


def _run(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    x_offset: int,
    g: ConvGeometry,
    stage: CheckedStage,
) -> np.ndarray:
    layer = DeconvWeights.pack(kernel_for(w), w, bias, g, x_offset)
    return Single.make(
        layer.add,
        layer.packed[0].kernel,
        x.shape,
        (x.shape[0], g.group * w.shape[1], *g.out_size),
        deconv_border(g, x.shape[2:]),
        x_offset,
        stage,
    )(x)


def deconv2d(x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """See `kernels.deconv2d`."""
    return _run(x, w, bias, 0, g, float_stage(g.group * w.shape[1]))


def deconv2d_int8(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    x_offset: int,
    g: ConvGeometry,
    stage: CheckedStage,
) -> np.ndarray:
    """See `kernels.deconv2d_int8`."""
    return _run(x, w, bias, x_offset, g, stage)

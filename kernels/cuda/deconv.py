"""2-D deconvolution: each output gathers from the taps that reach it."""

from __future__ import annotations

from typing import Any

from kernels.conv import ConvGeometry
from kernels.cuda.arrays import like, on_device
from kernels.cuda.conv import layer
from kernels.output import CheckedStage, float_stage

__all__ = ["deconv2d", "deconv2d_int8"]


def deconv2d_int8(
    x: Any, w: Any, bias: Any, x_offset: int, g: ConvGeometry, stage: CheckedStage
) -> Any:
    """See `kernels.deconv2d_int8`."""
    size = x.shape[2], x.shape[3]
    deconvolution = layer(size, w, bias, x_offset, g, stage, transposed=True)
    return like(deconvolution(on_device(x)), x)


def deconv2d(x: Any, w: Any, bias: Any, g: ConvGeometry) -> Any:
    """See `kernels.deconv2d`."""
    return deconv2d_int8(x, w, bias, 0, g, float_stage(bias.shape[0]))

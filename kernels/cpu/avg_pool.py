"""2-D average pooling: sums over windows of each channel alone."""

from __future__ import annotations

import numpy as np

from kernels.cpu.codegen.microkernels import choose
from kernels.cpu.engine.epilogue import Writes
from kernels.cpu.engine.image import Image
from kernels.cpu.engine.layer import Single
from kernels.cpu.engine.layers import add_average
from kernels.cpu.engine.steps import Builder
from kernels.cpu.engine.windows import pool_border
from kernels.output import CheckedStage, float_stage
from kernels.pool import PoolGeometry

__all__ = ["avg_pool2d", "avg_pool2d_int8"]


def _run(x: np.ndarray, x_offset: int, g: PoolGeometry, stage: CheckedStage) -> np.ndarray:
    def add(to: Builder, source: Image, writes: Writes) -> None:
        add_average(to, source, g, writes)

    return Single.make(
        add,
        choose("float" if x.dtype == np.float32 else "int8"),
        x.shape,
        (*x.shape[:2], *g.out_size),
        pool_border(g, x.shape[2:]),
        x_offset,
        stage,
    )(x)


def avg_pool2d(x: np.ndarray, g: PoolGeometry) -> np.ndarray:
    """See `kernels.avg_pool2d`."""
    return _run(x, 0, g, float_stage(x.shape[1]))


def avg_pool2d_int8(
    x: np.ndarray, x_offset: int, g: PoolGeometry, stage: CheckedStage
) -> np.ndarray:
    """See `kernels.avg_pool2d_int8`."""
    return _run(x, x_offset, g, stage)

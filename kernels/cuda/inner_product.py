"""Inner product: the GEMM over an image of one row, or sums of a block each for few rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cuda.arrays import empty, flat, like, on_device
from kernels.cuda.block import sum_block
from kernels.cuda.gemm.layer import Layer
from kernels.cuda.jit import THREADS, cuda, device_jit, grid, kernel, launch
from kernels.cuda.output import as_float32, as_int32, put, put_sum, table
from kernels.output import CheckedStage, float_stage

__all__ = ["inner_product", "inner_product_int8"]

#: So few rows would leave most of a tile empty.
_FEW = 8


def _sums(widen: Any, zero: Any, store: Any, dtype: Any) -> Any:
    """Return the body of a kernel whose blocks compute one output after another."""

    @device_jit
    def body(x, w, bias, offset, kind, stage, out):
        """Fill in all outputs, one a block; see the kernels below."""
        parts = cuda.shared.array(THREADS, dtype)
        rows, outs, t = x.shape[0], w.shape[0], cuda.threadIdx.x
        for i in range(cuda.blockIdx.x, rows * outs, cuda.gridDim.x):
            o, row = i // rows, i % rows  # rows that share weights follow one another
            total = zero
            for k in range(t, x.shape[1], THREADS):
                total = widen(total + (widen(x[row, k]) - offset) * widen(w[o, k]))
            parts[t] = total
            sum_block(parts, t, THREADS)
            if t == 0:
                store(out, row * outs + o, parts[0] + bias[o], o, outs, kind, stage)
            cuda.syncthreads()

    return body


_SUMS = _sums(as_int32, np.int32(0), put, np.int32)
_FLOAT_SUMS = _sums(as_float32, np.float32(0), put_sum, np.float32)


@kernel
def _few_rows(x, w, bias, offset, kind, stage, out):
    """Multiply int8 (rows, depth) by (outs, depth): int32 sums, stored by `kind`."""
    _SUMS(x, w, bias, offset, kind, stage, out)


@kernel
def _few_rows_floats(x, w, bias, offset, kind, stage, out):
    """Multiply float32."""
    _FLOAT_SUMS(x, w, bias, offset, kind, stage, out)


def _run(x: Any, w: Any, bias: Any, x_offset: int, stage: CheckedStage) -> Any:
    device_x, w, bias = on_device(x), on_device(w), on_device(bias)
    (rows, depth), outs, floats = device_x.shape, w.shape[0], w.dtype == np.float32
    if rows <= _FEW:
        out = empty((rows, outs), np.float32 if floats else stage.dtype)
        if rows:
            function = _few_rows_floats if floats else _few_rows
            offset = np.float32(0) if floats else np.int32(x_offset)
            blocks, how = grid(rows * outs, 1, 32), (stage.kind, table(stage))
            launch(function, blocks, THREADS, device_x, w, bias, offset, *how, flat(out))
        return like(out, x)
    point = ConvGeometry((1, 1), (1, 1), (0, 0), (1, 1), 1, (1, rows))
    weights = w.reshape(outs, depth, 1, 1)
    gemm = Layer.make(
        (1, rows), weights, bias, x_offset, point, stage, floats=floats, channels_last=True
    )
    return like(gemm(device_x.reshape(1, 1, rows, depth)).reshape(rows, outs), x)


def inner_product(x: Any, w: Any, bias: Any) -> Any:
    """See `kernels.inner_product`."""
    return _run(x, w, bias, 0, float_stage(w.shape[0]))


def inner_product_int8(x: Any, w: Any, bias: Any, x_offset: int, stage: CheckedStage) -> Any:
    """See `kernels.inner_product_int8`."""
    return _run(x, w, bias, x_offset, stage)

"""Inner product: BLAS in float32, the integer product in INT8."""

from __future__ import annotations

from functools import partial

import numpy as np

from kernels.cpu.blas import spread
from kernels.cpu.gemm import COLUMNS, multiply, pack_weights
from kernels.cpu.jit import parallel_entry, parallel_jit, prange
from kernels.cpu.output import stage_args, store_run
from kernels.output import CheckedStage

__all__ = ["inner_product", "inner_product_int8"]

#: So many products are worth a thread.
_LEAST_PRODUCTS = 1 << 20


def inner_product(x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """See `kernels.inner_product`."""
    y = np.empty((x.shape[0], w.shape[0]), np.float32)
    part = max(1, _LEAST_PRODUCTS // max(x.size, 1))
    starts = range(0, w.shape[0], part)
    spread([partial(_columns, x, w, bias, slice(i, i + part), y) for i in starts])
    return y


def _columns(x: np.ndarray, w: np.ndarray, bias: np.ndarray, part: slice, y: np.ndarray) -> None:
    y[:, part] = x @ w[part].T + bias[part]


@parallel_jit
def _inner_product_int8(data, bases, taps, weights, bias, stage, out):
    """One block of outputs for all rows."""
    rows, outs = out.shape
    for block_ in prange(weights.shape[0]):
        block = np.int64(block_)
        acc = np.empty((COLUMNS, rows), np.int32)
        multiply(data, bases, taps, weights[block], acc)
        for o in range(min(COLUMNS, outs - block * COLUMNS)):
            c = block * COLUMNS + o
            store_run(acc[o], bias[c], c, stage, out[:, c])


def inner_product_int8(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, x_offset: int, stage: CheckedStage
) -> np.ndarray:
    """See `kernels.inner_product_int8`."""
    out = np.empty((x.shape[0], w.shape[0]), stage.dtype)
    if not out.size:
        return out
    data = np.zeros(x.size + 1, np.int16)
    np.subtract(x.reshape(-1), np.int16(x_offset), out=data[:-1], dtype=np.int16)
    bases = np.arange(x.shape[0]) * x.shape[1]
    weights = pack_weights(w.reshape(1, w.shape[0], 1, -1))[0]
    with parallel_entry():
        _inner_product_int8(
            data, bases, np.zeros(1, np.int64), weights, bias, stage_args(stage), out
        )
    return out

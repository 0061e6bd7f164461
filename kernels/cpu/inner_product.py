"""Inner product: BLAS in float32, the integer product in INT8."""

from __future__ import annotations

from functools import partial

import numpy as np

from kernels.cpu.blas import spread
from kernels.cpu.gemm import dot_tile, pack_rows
from kernels.cpu.jit import parallel_entry, parallel_jit, prange
from kernels.cpu.output import stage_args, store_run
from kernels.output import CheckedStage

__all__ = ["inner_product", "inner_product_int8"]

#: Outputs computed at a time by one thread.
_BLOCK = 16
_LEAST_PRODUCTS = 1 << 20


def inner_product(x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """See `kernels.inner_product`."""
    y = np.empty((x.shape[0], w.shape[0]), np.float32)
    # enough products a part to be worth a thread
    part = max(1, _LEAST_PRODUCTS // max(x.size, 1))
    starts = range(0, w.shape[0], part)
    spread([partial(_columns, x, w, bias, slice(i, i + part), y) for i in starts])
    return y


def _columns(x: np.ndarray, w: np.ndarray, bias: np.ndarray, part: slice, y: np.ndarray) -> None:
    y[:, part] = x @ w[part].T + bias[part]


@parallel_jit
def _inner_product_int8(x, w, bias, stage, out):
    count, outs = x.shape[0], w.shape[0]
    for block in prange((outs + _BLOCK - 1) // _BLOCK):
        first = block * _BLOCK
        size = min(_BLOCK, outs - first)
        acc = np.empty((size, count), np.int32)
        dot_tile(w[first : first + size], x, acc)
        for o in range(size):
            store_run(acc[o], bias[first + o], first + o, stage, out[:, first + o])


def inner_product_int8(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, x_offset: int, stage: CheckedStage
) -> np.ndarray:
    """See `kernels.inner_product_int8`."""
    out = np.empty((x.shape[0], w.shape[0]), stage.dtype)
    if out.size:
        rows, data = pack_rows(w), pack_rows(x, x_offset)
        with parallel_entry():
            _inner_product_int8(data, rows, bias, stage_args(stage), out)
    return out

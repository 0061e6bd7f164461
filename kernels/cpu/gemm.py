"""The integer matrix product under convolution, deconvolution and inner product.

Operands are rows of int16 values padded with zeros to a multiple of `LANE`, so that a sum
is a run of 16-bit products added in pairs into int32, which is what ``vpmaddwd`` does; no
step saturates. `dot_tile` is the micro-kernel: nothing around it knows its registers.
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange

__all__ = ["LANE", "dot_tile", "pack_rows", "padded"]

#: Rows are padded to a multiple of this many int16 values.
LANE = 16


def padded(length: int) -> int:
    """Return the length of a packed row."""
    return -(-length // LANE) * LANE


@jit
def dot_tile(a, b, out):
    """Fill ``out[i, j] = sum over k of a[i, k] * b[j, k]``.

    Parameters
    ----------
    a : int16 array (I, K)
    b : int16 array (J, K)
        K a multiple of `LANE`.
    out : int32 array (I, J)
    """
    rows, columns, depth = a.shape[0], b.shape[0], a.shape[1]
    i = 0
    while i < rows:
        i1 = min(i + 1, rows - 1)
        j = 0
        while j < columns:
            j1, j2, j3 = min(j + 1, columns - 1), min(j + 2, columns - 1), min(j + 3, columns - 1)
            s00 = s01 = s02 = s03 = np.int32(0)
            s10 = s11 = s12 = s13 = np.int32(0)
            for k in range(depth):
                x, y = np.int32(a[i, k]), np.int32(a[i1, k])
                s00 = np.int32(s00 + x * np.int32(b[j, k]))
                s01 = np.int32(s01 + x * np.int32(b[j1, k]))
                s02 = np.int32(s02 + x * np.int32(b[j2, k]))
                s03 = np.int32(s03 + x * np.int32(b[j3, k]))
                s10 = np.int32(s10 + y * np.int32(b[j, k]))
                s11 = np.int32(s11 + y * np.int32(b[j1, k]))
                s12 = np.int32(s12 + y * np.int32(b[j2, k]))
                s13 = np.int32(s13 + y * np.int32(b[j3, k]))
            out[i, j], out[i1, j] = s00, s10
            out[i, j1], out[i1, j1] = s01, s11
            out[i, j2], out[i1, j2] = s02, s12
            out[i, j3], out[i1, j3] = s03, s13
            j += 4
        i += 2


@parallel_jit
def _pack_rows(q, offset, out):
    rows, length = q.shape
    for r in prange(rows):
        for k in range(length):
            out[r, k] = np.int16(q[r, k]) - offset
        for k in range(length, out.shape[1]):
            out[r, k] = 0


def pack_rows(q: np.ndarray, offset: int = 0) -> np.ndarray:
    """Return int8 rows (R, K), less `offset`, as packed int16 rows (R, padded(K))."""
    out = np.empty((q.shape[0], padded(q.shape[1])), np.int16)
    with parallel_entry():
        _pack_rows(q, np.int16(offset), out)
    return out

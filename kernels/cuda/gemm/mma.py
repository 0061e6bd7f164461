"""The kernel of the GEMM for tensor cores; see `kernels.cuda.gemm.layer`.

Of a product of 16 x 32 by 32 x 8 a thread holds, in words of four along the depth, with
``g, q = lane // 4, lane % 4``: of the left side rows g and g + 8 at word q, then both at word
q + 4; of the right side column g at words q and q + 4; of the result row g at columns 2q and
2q + 1, then row g + 8 at both.
"""

from __future__ import annotations

import numpy as np

from kernels.cuda.gemm import packing
from kernels.cuda.gemm.ptx import mma
from kernels.cuda.gemm.tiles import keep, loads, place
from kernels.cuda.jit import cuda, device_jit, kernel
from kernels.cuda.output import put

__all__ = ["COLUMNS", "DEPTH", "ROWS", "THREADS", "mma_tiles"]

#: Channels and pixels of a block: 4 warps side by side, each computes 64 x 32 outputs.
ROWS, COLUMNS, THREADS, DEPTH = 64, 128, 128, 8
#: Rows of shared memory are padded by 8 words, so that fragments have no bank conflicts.
_LEFT, _RIGHT = ROWS + 8, COLUMNS + 8
_LEFT_HALVES, _RIGHT_HALVES, _SUMS = 2 * DEPTH * _LEFT, 2 * DEPTH * _RIGHT, 16 * _RIGHT
_LINE, _LINES = np.uint64(_RIGHT), np.uint64(8 * _RIGHT)
_LEFT_HALF, _RIGHT_HALF = np.uint64(DEPTH * _LEFT), np.uint64(DEPTH * _RIGHT)
_LEFT_DEEP, _RIGHT_DEEP = np.uint64(4 * _LEFT), np.uint64(4 * _RIGHT)
_LEFT_APART = np.uint64(2 * _LEFT)
_0, _1, _8, _16, _24 = (np.uint64(n) for n in (0, 1, 8, 16, 24))
_32, _48 = np.uint64(32), np.uint64(48)
_ZERO = np.int32(0)
_NONE = (_ZERO, _ZERO, _ZERO, _ZERO)
_NONES = (_NONE, _NONE, _NONE, _NONE)
_NOTHING = (_NONES, _NONES, _NONES, _NONES)
_pixels, _weights = loads(_ZERO, False)


@device_jit
def _left(a, at):
    """Return a thread's part of 16 rows."""
    return a[at], a[at + _8], a[at + _LEFT_DEEP], a[at + _LEFT_DEEP + _8]


@device_jit
def _right(b, at):
    """Return a thread's part of 8 columns."""
    return b[at], b[at + _RIGHT_DEEP]


@device_jit
def _row(c, a, b0, b1, b2, b3):
    """Add the products of 16 rows with 4 times 8 columns."""
    return mma(a, b0, c[0]), mma(a, b1, c[1]), mma(a, b2, c[2]), mma(a, b3, c[3])


@device_jit
def _products(c, a, b, y, x):
    """Add the products of a warp's 64 rows and 32 columns over 8 words of depth."""
    b0, b1, b2, b3 = _right(b, x), _right(b, x + _8), _right(b, x + _16), _right(b, x + _24)
    return (
        _row(c[0], _left(a, y), b0, b1, b2, b3),
        _row(c[1], _left(a, y + _16), b0, b1, b2, b3),
        _row(c[2], _left(a, y + _32), b0, b1, b2, b3),
        _row(c[3], _left(a, y + _48), b0, b1, b2, b3),
    )


@device_jit
def _lay(sums, c, at):
    """Lay a thread's part of 16 x 8 sums in shared memory."""
    sums[at], sums[at + _1] = c[0], c[1]
    sums[at + _LINES], sums[at + _LINES + _1] = c[2], c[3]


@device_jit
def _write(sums, c, o, last, goes, phase, sizes, bias, kind, stage, out):
    """Store 16 rows of a block, a column a thread, so that neighbours write side by side."""
    t = np.int64(cuda.threadIdx.x)
    at = np.uint64(t % 32 // 4 * _RIGHT + t // 32 * 32 + t % 4 * 2)
    _lay(sums, c[0], at)
    _lay(sums, c[1], at + _8)
    _lay(sums, c[2], at + _16)
    _lay(sums, c[3], at + _24)
    cuda.syncthreads()
    if goes >= 0:
        for i in range(min(last - o, 16)):
            v = sums[i * _RIGHT + t] + bias[phase * sizes.outs + o + i]
            put(out, goes + (o + i) * sizes.channel_step, v, o + i, sizes.outs, kind, stage)
    cuda.syncthreads()


@kernel
def mma_tiles(words, places, weights, phases, bias, sizes, kind, stage, out):
    """Multiply int8 with tensor cores."""
    a = cuda.shared.array(_LEFT_HALVES, np.int32)
    b = cuda.shared.array(_RIGHT_HALVES, np.int32)
    sums = cuda.shared.array(_SUMS, np.int32)
    outs, groups, per = sizes.outs, sizes.groups, sizes.outs // sizes.groups
    t = np.int64(cuda.threadIdx.x)
    column, first = t % ROWS, t // ROWS
    # where this thread keeps words, and where its fragments begin
    put_a, put_b = np.uint64(first * _LEFT + column), np.uint64(t)
    y = np.uint64(t % 4 * _LEFT + t % 32 // 4)
    x = np.uint64(t % 4 * _RIGHT + t // 32 * 32 + t % 32 // 4)
    left, top = np.int64(cuda.blockIdx.x) * COLUMNS, np.int64(cuda.blockIdx.y) * ROWS
    for z in range(cuda.blockIdx.z, phases.shape[0] * groups, cuda.gridDim.z):
        phase, group = z // groups, z % groups
        begin, end = phases[phase, packing.BEGIN], phases[phase, packing.END]
        count = sizes.batch * phases[phase, packing.ROWS] * phases[phase, packing.COLUMNS]
        if left >= count:
            continue
        base, goes = place(left + t, count, phases, phase, group, sizes)
        o = group * per + min(top + column, per - 1)
        keep(a, put_a, _LEFT_APART, _weights(weights, o, outs, begin + first, 2))
        keep(b, put_b, _LINE, _pixels(words, places, base, begin, end, 1))
        keep(b, put_b + _RIGHT_DEEP, _LINE, _pixels(words, places, base, begin + 4, end, 1))
        cuda.syncthreads()
        c, at_a, at_b = _NOTHING, _0, _0
        for k in range(begin + DEPTH, end + DEPTH, DEPTH):
            w = _weights(weights, o, outs, k + first, 2)
            p = _pixels(words, places, base, k, end, 1)
            r = _pixels(words, places, base, k + 4, end, 1)
            c = _products(c, a, b, at_a + y, at_b + x)
            at_a, at_b = _LEFT_HALF - at_a, _RIGHT_HALF - at_b
            keep(a, at_a + put_a, _LEFT_APART, w)
            keep(b, at_b + put_b, _LINE, p)
            keep(b, at_b + put_b + _RIGHT_DEEP, _LINE, r)
            cuda.syncthreads()
        o, last = group * per + top, (group + 1) * per
        _write(sums, c[0], o, last, goes, phase, sizes, bias, kind, stage, out)
        _write(sums, c[1], o + 16, last, goes, phase, sizes, bias, kind, stage, out)
        _write(sums, c[2], o + 32, last, goes, phase, sizes, bias, kind, stage, out)
        _write(sums, c[3], o + 48, last, goes, phase, sizes, bias, kind, stage, out)

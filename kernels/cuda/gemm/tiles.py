"""Kernels of the GEMM whose threads add up 4 x 4 outputs each; see `kernels.cuda.gemm.layer`.

Shared memory has one axis and unsigned indices, so that no code for negative indices is
generated; the depth is unrolled by hand.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.cuda.gemm.packing import BEGIN, COLUMNS, END, FIRST_COLUMN, FIRST_ROW, ROWS
from kernels.cuda.gemm.ptx import dp4a
from kernels.cuda.jit import SIMULATED, cuda, device_jit, kernel
from kernels.cuda.output import put, put_sum

__all__ = [
    "SIDE",
    "TILE",
    "Sizes",
    "dp4a_tiles",
    "float_tiles",
    "keep",
    "loads",
    "place",
    "plain_tiles",
]

#: Threads along an axis of a block; each computes 4 x 4 outputs.
SIDE = 4 if SIMULATED else 16
TILE = 4 * SIDE
#: Rows of the depth from one value that a thread loads to the next, and rows of a step.
_SPAN = SIDE * SIDE // TILE
_DEPTH = 4 * _SPAN
_HALVES = 2 * _DEPTH * TILE
_ZERO = np.int32(0)
#: Alignment for vector loads of adjacent words: 4 channels, and 2 pixels twice.
_ALIGNED = None if SIMULATED else 16
_FAR = 2 * SIDE
# distances in shared memory: to a thread's other outputs, words of depth, values to keep
_1, _2, _3, _4 = (np.uint64(n) for n in (1, 2, 3, 4))
_5, _6 = np.uint64(_FAR), np.uint64(_FAR + 1)
_WORD, _WORDS, _THIRD = np.uint64(TILE), np.uint64(2 * TILE), np.uint64(3 * TILE)
_FOUR, _HALF = np.uint64(4 * TILE), np.uint64(_DEPTH * TILE)
_APART, _START = np.uint64(_SPAN * TILE), np.uint64(0)


class Sizes(NamedTuple):
    """The numbers of a layer and a batch that kernels take, counted in words of the arrays.

    Attributes
    ----------
    image_step, group_step : int
        From an image, and from a group of its channels, to the next.
    down, right : int
        In the image, from an output of a phase to the next row's and the next.
    spread_down, spread_right : int
        Rows and columns between these outputs.
    outs, groups, batch : int
        Channels of the output and their groups; images.
    out_width, out_image : int
        Columns of the output, and all that an image has.
    channel_step, pixel_step : int
        In the output.
    """

    image_step: int
    group_step: int
    down: int
    right: int
    spread_down: int
    spread_right: int
    outs: int
    groups: int
    batch: int
    out_width: int
    out_image: int
    channel_step: int
    pixel_step: int


@device_jit
def _pixel(p, rows, columns):
    """Return image, row and column of a pixel."""
    line = np.int64(np.uint32(p) // np.uint32(columns))
    n = np.int64(np.uint32(line) // np.uint32(rows))
    return n, line - n * rows, p - line * columns


@device_jit
def place(p, count, phases, phase, group, sizes):
    """Return where a column of the product begins in the image and goes in the output, or -1."""
    if p >= count:
        return group * sizes.group_step, -1
    n, i, j = _pixel(p, phases[phase, ROWS], phases[phase, COLUMNS])
    row = phases[phase, FIRST_ROW] + i * sizes.spread_down
    at = (
        n * sizes.out_image
        + (row * sizes.out_width + phases[phase, FIRST_COLUMN] + j * sizes.spread_right)
        * sizes.pixel_step
    )
    begin = n * sizes.image_step + group * sizes.group_step + i * sizes.down + j * sizes.right
    return begin, at


def loads(zero: Any, guarded: bool) -> tuple[Any, Any]:
    """Return functions that read four values of a column, and of a row, of the product.

    Behind the end of the depth lie weights of zero. That is enough for integers; floats are
    `guarded`, as an infinity times zero is none.
    """

    @device_jit
    def pixel(words, places, base, row, end):
        """Return the value of a column of the product at one row of the depth."""
        v = words[np.uint64(base + places[np.uint64(row)])]
        if guarded:
            return v if row < end else zero
        return v

    @device_jit
    def pixels(words, places, base, row, end, span):
        """Return the values at four rows, `span` apart."""
        return (
            pixel(words, places, base, row, end),
            pixel(words, places, base, row + span, end),
            pixel(words, places, base, row + 2 * span, end),
            pixel(words, places, base, row + 3 * span, end),
        )

    @device_jit
    def some_weights(weights, o, outs, row, span):
        """Return the weights of output o at four rows, `span` apart."""
        at, apart = np.uint64(row * outs + o), np.uint64(span * outs)
        return (
            weights[at],
            weights[at + apart],
            weights[at + apart + apart],
            weights[at + apart + apart + apart],
        )

    return pixels, some_weights


@device_jit
def keep(shared, at, apart, four):
    """Store four values of a thread in shared memory."""
    shared[at] = four[0]
    shared[at + apart] = four[1]
    shared[at + apart + apart] = four[2]
    shared[at + apart + apart + apart] = four[3]


def _products(dot: Any) -> Any:
    """Return the function that adds products of four words of depth to a thread's sums."""

    @device_jit
    def row(c, a, b):
        """Add the products of one value on the left with four on the right."""
        return dot(a, b[0], c[0]), dot(a, b[1], c[1]), dot(a, b[2], c[2]), dot(a, b[3], c[3])

    @device_jit
    def word(c, a, b, y, x):
        """Add the products of one word of depth to 4 x 4 sums."""
        q = (b[x], b[x + _1], b[x + _5], b[x + _6])
        r = (a[y], a[y + _1], a[y + _2], a[y + _3])
        return row(c[0], r[0], q), row(c[1], r[1], q), row(c[2], r[2], q), row(c[3], r[3], q)

    @device_jit
    def products(c, a, b, y, x):
        """Add the products of four words of depth to 4 x 4 sums."""
        c = word(c, a, b, y, x)
        c = word(c, a, b, y + _WORD, x + _WORD)
        c = word(c, a, b, y + _WORDS, x + _WORDS)
        return word(c, a, b, y + _THIRD, x + _THIRD)

    return products


def _writes(store: Any) -> Any:
    """Return the function that stores four sums of a thread that are of one channel."""

    @device_jit
    def one(v, goes, begin, o, outs, kind, stage, out):
        """Store a sum, if its pixel exists."""
        if goes >= 0:
            store(out, goes + begin, v, o, outs, kind, stage)

    @device_jit
    def write(c, o, last, goes, phase, sizes, bias, kind, stage, out):
        """Store four sums of channel o, if it is below `last`."""
        outs = sizes.outs
        if o < last:
            begin, add = o * sizes.channel_step, bias[phase * outs + o]
            one(c[0] + add, goes[0], begin, o, outs, kind, stage, out)
            one(c[1] + add, goes[1], begin, o, outs, kind, stage, out)
            one(c[2] + add, goes[2], begin, o, outs, kind, stage, out)
            one(c[3] + add, goes[3], begin, o, outs, kind, stage, out)

    return write


def _tiled(dot: Any, zero: Any, store: Any, dtype: Any) -> Any:
    """Return the body of a kernel whose threads make products with ``dot``."""
    pixels, some_weights = loads(zero, dtype is np.float32)
    products, write = _products(dot), _writes(store)
    none = (zero, zero, zero, zero)
    nothing = (none, none, none, none)

    @device_jit
    def body(words, places, weights, phases, bias, sizes, kind, stage, out):
        """Compute the tiles of a block, one after the other."""
        # each on a line of its own, by which the simulator tells shared arrays apart
        a = cuda.shared.array(_HALVES, dtype, _ALIGNED)
        b = cuda.shared.array(_HALVES, dtype, _ALIGNED)
        at = cuda.shared.array(TILE, np.int64)
        outs, groups, per = sizes.outs, sizes.groups, sizes.outs // sizes.groups
        x, y = np.int64(cuda.threadIdx.x), np.int64(cuda.threadIdx.y)
        ux, uy, mine = np.uint64(x) * _2, np.uint64(y) * _4, np.uint64(y * SIDE + x)
        column, first = (y * SIDE + x) % TILE, (y * SIDE + x) // TILE
        left, top = np.int64(cuda.blockIdx.x) * TILE, np.int64(cuda.blockIdx.y) * TILE
        for z in range(cuda.blockIdx.z, phases.shape[0] * groups, cuda.gridDim.z):
            phase, group = z // groups, z % groups
            begin, end = phases[phase, BEGIN], phases[phase, END]
            count = sizes.batch * phases[phase, ROWS] * phases[phase, COLUMNS]
            if left >= count:
                continue
            base, goes = place(left + column, count, phases, phase, group, sizes)
            if first == 0:
                at[column] = goes
            o = group * per + min(top + column, per - 1)
            keep(a, mine, _APART, some_weights(weights, o, outs, begin + first, _SPAN))
            keep(b, mine, _APART, pixels(words, places, base, begin + first, end, _SPAN))
            cuda.syncthreads()
            c, half, turn = nothing, _START, _START
            for k in range(begin + first + _DEPTH, end + first + _DEPTH, _DEPTH):
                p = pixels(words, places, base, k, end, _SPAN)
                w = some_weights(weights, o, outs, k, _SPAN)
                d = _START
                while d < _HALF:
                    c = products(c, a, b, half + d + uy, half + d + ux)
                    d += _FOUR
                turn += _1
                half = (turn & _1) * _HALF
                keep(a, half + mine, _APART, w)
                keep(b, half + mine, _APART, p)
                cuda.syncthreads()
            o, last = group * per + top + 4 * y, (group + 1) * per
            to = (at[ux], at[ux + _1], at[ux + _5], at[ux + _6])
            write(c[0], o, last, to, phase, sizes, bias, kind, stage, out)
            write(c[1], o + 1, last, to, phase, sizes, bias, kind, stage, out)
            write(c[2], o + 2, last, to, phase, sizes, bias, kind, stage, out)
            write(c[3], o + 3, last, to, phase, sizes, bias, kind, stage, out)
            cuda.syncthreads()

    return body


@device_jit
def _fma(a, b, c):
    """Return ``c + a * b``; nothing quantizes these sums, they may round once."""
    return c + a * b


@device_jit
def _dot(a, b, c):
    """Return ``c`` plus the product of two words of four int8 each, modulo 2**32."""
    total = np.int64(c)
    for shift in range(0, 32, 8):
        total += np.int64(np.int8((a >> shift) & 255)) * np.int64(np.int8((b >> shift) & 255))
    return np.int32(total)


_FLOAT = _tiled(_fma, np.float32(0), put_sum, np.float32)
_PLAIN = _tiled(_dot, _ZERO, put, np.int32)
_DP4A = _tiled(dp4a, _ZERO, put, np.int32)


@kernel
def float_tiles(words, places, weights, phases, bias, sizes, kind, stage, out):
    """Multiply float32."""
    _FLOAT(words, places, weights, phases, bias, sizes, kind, stage, out)


@kernel
def plain_tiles(words, places, weights, phases, bias, sizes, kind, stage, out):
    """Multiply int8, one product at a time."""
    _PLAIN(words, places, weights, phases, bias, sizes, kind, stage, out)


@kernel
def dp4a_tiles(words, places, weights, phases, bias, sizes, kind, stage, out):
    """Multiply int8, four products an instruction."""
    _DP4A(words, places, weights, phases, bias, sizes, kind, stage, out)

"""Run compiled steps: the loops over strips and blocks, spread over the cores.

They know nothing of instruction sets or types: every step is a record of numbers and
addresses as its kind has them (`KINDS`), and what touches values is reached through
`kernels.cpu.codegen.native.call`.
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.codegen.gemm import LINE
from kernels.cpu.codegen.native import bytes_at, call
from kernels.cpu.engine.counting import count_lines
from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange

__all__ = [
    "BORDER", "CHANNELS", "COUNT", "GEMM", "KINDS", "LINES", "MATRIX", "MAXIMA", "STEP", "ahead",
    "run_steps",
]  # fmt: skip

#: Kinds of steps: products over channels, by tiles or by matrices; sums over windows of each
#: channel, maxima of windows, lines of float32 passed through the output stage, borders filled
#: with the zero, and lines of float32 counted in a histogram.
GEMM, MATRIX, CHANNELS, MAXIMA, LINES, BORDER, COUNT = range(7)

#: What every step has. Addresses are of the data read and written (they lie in buffers and are set
#: for each set of buffers), of the output stage's table and of its function. Jobs can be done in
#: any order; each computes a strip of the positions.
_COMMON = (
    "kind", "jobs", "data", "data_buffer", "out", "out_buffer", "stage", "store", "positions",
    "strip",
)  # fmt: skip
#: What each kind has besides. `bases`, `taps`, `runs` and `out_offsets` are addresses of tables of
#: byte offsets; `weights` and `start` of the packed weights and the accumulators' first values.
_OWN = {
    GEMM: (
        "bases", "taps", "runs", "words", "weights", "start", "strips", "chunks", "group_bytes",
        "outs", "blocks", "block_bytes", "columns", "lanes", "rows", "tail_rows", "whole_1",
        "whole_2", "short_1", "short_2", "stored_1", "stored_2", "following", "following_bytes",
    ),
    MATRIX: (
        "bases", "taps", "runs", "run_bytes", "word_blocks", "pitch", "even", "weights", "start",
        "strips", "chunks", "group_bytes", "outs", "blocks", "block_bytes", "columns", "lanes",
        "rows", "product_1", "product_2", "gather", "begin", "end", "first",
    ),
    CHANNELS: (
        "bases", "taps", "words", "weights", "start", "blocks", "block_bytes", "block_data_bytes",
        "columns", "stored_1", "stored_2",
    ),
    MAXIMA: ("bases", "window", "function", "out_offsets", "channels"),
    LINES: ("bases", "pixel_bytes", "width", "channels"),
    BORDER: ("pixel_bytes", "width", "border_h", "border_w", "zero"),
    COUNT: ("bases", "length", "counter"),
}  # fmt: skip
_ROOM = max(map(len, _OWN.values()))

#: A step of any kind, and the record of each kind, which is as long: one table holds them all.
STEP = np.dtype([*((name, np.int64) for name in _COMMON), ("own", np.int64, _ROOM)])
KINDS = {
    kind: np.dtype(
        [*((name, np.int64) for name in (*_COMMON, *own)), ("unused", np.int64, _ROOM - len(own))]
    )
    for kind, own in _OWN.items()
}
_GEMM, _MATRIX, _CHANNELS, _MAXIMA, _LINES, _BORDER, _COUNT = (
    KINDS[kind] for kind in sorted(KINDS)
)


@jit
def ahead(s, weights, block, strip):
    """Return where the weights lie that are read after those of a block, and their end."""
    if block < s.blocks - 1:
        return weights + s.block_bytes, weights + 2 * s.block_bytes
    if strip < s.strips - 1:
        return weights, weights
    return s.following, s.following + s.following_bytes


@jit
def _gemm(s, job):
    """Compute some positions of some blocks of outputs."""
    strip, chunk = job % s.strips, job // s.strips % s.chunks
    group = job // (s.strips * s.chunks)
    begin = strip * s.strip
    end = min(begin + s.strip, s.positions)
    acc = np.empty(s.rows * s.columns, np.int32)
    sums = np.int64(acc.ctypes.data)
    data = s.data + group * s.group_bytes
    # chunks differ by one block at most: cores that share them finish together
    for block in range(chunk * s.blocks // s.chunks, (chunk + 1) * s.blocks // s.chunks):
        first = block * s.columns
        count = min(s.columns, s.outs - first)
        wide = count > s.lanes
        whole, short = (s.whole_2, s.short_2) if wide else (s.whole_1, s.short_1)
        width = s.columns if wide else s.lanes
        # a whole tile passes its sums to the output stage in registers
        stored = s.stored_1 if block == s.blocks - 1 else s.stored_2
        channel = group * s.outs + first
        weights = s.weights + (group * s.blocks + block) * s.block_bytes
        start = s.start + (group * s.blocks + block) * s.columns * 4
        soon, until = ahead(s, weights, block, strip)
        p = begin
        while p < end:
            rows = min(end - p, s.rows)
            tile = short if end - p <= s.tail_rows else whole
            bases = s.bases + 8 * p
            if rows == s.rows:
                soon = soon if soon < until else weights  # which are there
                place = (soon, s.stage, channel, p)
                call(stored, (data, bases, s.taps, s.runs, s.words, weights, start, *place))
                soon += s.runs * s.words * LINE
            else:
                call(tile, (sums, data, bases, s.taps, s.runs, s.words, weights, start))
                call(s.store, (sums, 4 * width, rows, count, s.stage, channel, p))
            p += rows
    acc[0] = 0  # numba frees an array after its last use, whoever has its address


@jit
def _matrix(s, job):
    """Compute some positions of some blocks of outputs by products of whole matrices."""
    strip, chunk = job % s.strips, job // s.strips % s.chunks
    group = job // (s.strips * s.chunks)
    first_position = strip * s.strip
    count = min(s.strip, s.positions - first_position)
    memory = np.empty((s.strip + 1) * s.pitch + s.rows * s.columns * 4 + 64, np.uint8)
    rows = np.int64(memory.ctypes.data)
    rows += -rows % 64
    sums = rows + s.strip * s.pitch + s.pitch
    data = s.data + group * s.group_bytes
    # windows that lie evenly are read in place, but for the last: nothing lies behind
    even = count - count % s.rows if s.even else 0
    if even < count:
        target, bases = rows + even * s.pitch, s.bases + 8 * (first_position + even)
        call(s.gather, (target, s.pitch, data, bases, count - even, s.taps, s.runs, s.run_bytes))
    call(s.begin, ())
    for block in range(chunk * s.blocks // s.chunks, (chunk + 1) * s.blocks // s.chunks):
        first = block * s.columns
        outs = min(s.columns, s.outs - first)
        product = s.product_2 if outs > s.lanes else s.product_1
        width = s.columns if outs > s.lanes else s.lanes
        weights = s.weights + (group * s.blocks + block) * s.block_bytes
        start = s.start + (group * s.blocks + block) * s.columns * 4
        for p in range(0, count, s.rows):
            at, pitch = rows + p * s.pitch, s.pitch
            if p < even:
                at, pitch = data + s.first + (first_position + p) * s.even, s.even
            call(product, (sums, at, pitch, s.word_blocks, weights, start))
            place = (s.stage, group * s.outs + first, first_position + p)
            call(s.store, (sums, 4 * width, min(s.rows, count - p), outs, *place))
    call(s.end, ())
    memory[0] = 0  # numba frees an array after its last use, whoever has its address


@jit
def _channels(s, job):
    """Compute some positions of all channels, one channel a group."""
    begin = job * s.strip
    count = min(s.strip, s.positions - begin)
    bases = s.bases + 8 * begin
    for block in range(s.blocks):
        first = block * s.columns
        data = s.data + block * s.block_data_bytes
        weights, start = s.weights + block * s.block_bytes, s.start + first * 4
        stored = s.stored_1 if block == s.blocks - 1 else s.stored_2
        place = (s.stage, first, begin)
        call(stored, (data, bases, s.taps, s.words, weights, start, count, *place))


@jit
def _maxima(s, job):
    """Compute one strip of maximum pooling."""
    begin = job * s.strip
    count = min(s.strip, s.positions - begin)
    table = s.bases + 8 * begin * s.window
    out_offsets = s.out_offsets + 8 * begin
    call(s.function, (s.out, out_offsets, s.data, table, s.window, count, s.channels))


@jit
def _lines(s, job):
    """Pass one line of float32 positions through the output stage."""
    source = s.data + bytes_at(s.bases, 8 * s.positions).view(np.int64)[job]
    call(s.store, (source, s.pixel_bytes, s.width, s.channels, s.stage, 0, job * s.width))


@jit
def _border(s, job):
    """Fill the border of one image with its zero."""
    row = s.width * s.pixel_bytes
    height = s.positions
    side = s.border_w * s.pixel_bytes
    image = bytes_at(s.data + job * height * row, height * row)
    zero = np.uint8(s.zero)
    image[: s.border_h * row] = zero
    image[(height - s.border_h) * row :] = zero
    if side:
        for i in range(s.border_h, height - s.border_h):
            image[i * row : i * row + side] = zero
            image[(i + 1) * row - side : (i + 1) * row] = zero


@jit
def _count(s, threads):
    """Count an image, if a counter is there."""
    if s.counter:
        starts = bytes_at(s.bases, 8 * s.positions).view(np.int64)
        count_lines(s.counter, s.data, starts, s.length, threads)


@jit
def _job(steps, i, job):
    """Do one job of step i."""
    kind = steps[i].kind
    if kind == GEMM:
        _gemm(steps.view(_GEMM)[i], job)
    elif kind == MATRIX:
        _matrix(steps.view(_MATRIX)[i], job)
    elif kind == CHANNELS:
        _channels(steps.view(_CHANNELS)[i], job)
    elif kind == MAXIMA:
        _maxima(steps.view(_MAXIMA)[i], job)
    elif kind == LINES:
        _lines(steps.view(_LINES)[i], job)
    else:
        _border(steps.view(_BORDER)[i], job)


@parallel_jit
def _parallel(steps, i, jobs):
    """Do the jobs of step i on all threads."""
    for job in prange(jobs):
        _job(steps, i, np.int64(job))


@jit
def _run(steps, begin, end, threads):
    """Run steps [begin, end), one after the other."""
    for i in range(begin, end):
        jobs = steps[i].jobs
        if steps[i].kind == COUNT:
            _count(steps.view(_COUNT)[i], threads)
        elif jobs == 1 or threads == 1 or steps[i].kind == BORDER:
            for job in range(jobs):
                _job(steps, i, job)
        else:
            _parallel(steps, i, jobs)


def run_steps(steps: np.ndarray, begin: int, end: int, threads: int) -> None:
    """Run steps [begin, end) of a table of `STEP`, one after the other."""
    if threads == 1:
        _run(steps, begin, end, 1)
        return
    with parallel_entry():
        _run(steps, begin, end, threads)

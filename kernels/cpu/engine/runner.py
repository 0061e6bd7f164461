"""Run compiled steps: the loops over strips and blocks, spread over the cores.

They know nothing of instruction sets or types: every step is a record of numbers and
addresses (`STEP`), and what touches values is reached through `kernels.cpu.codegen.native.call`.
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.codegen.native import bytes_at, call
from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange

__all__ = ["APPLY", "CHANNELS", "FILL", "LARGEST", "OUTPUTS", "STEP", "run_steps"]

#: Kinds of steps.
OUTPUTS, CHANNELS, LARGEST, APPLY, FILL = range(5)

#: A step. Addresses are of the data read, of the tables of byte offsets and constants, and of
#: functions; `data` and `out` lie in buffers and are set for each set of buffers.
STEP = np.dtype(
    [
        (name, np.int64)
        for name in (
            "kind", "data", "data_buffer", "out", "out_buffer", "stage", "store", "positions",
            "strip", "strips", "chunks", "groups", "bases", "taps", "runs", "words", "weights",
            "start", "block_bytes", "outs", "blocks", "columns", "lanes", "rows", "tail_rows",
            "whole_1", "whole_2", "short_1", "short_2", "group_bytes", "out_at", "channels",
            "acc_words", "pixels", "line", "border_h", "border_w", "images", "zero",
            "stored_1", "stored_2",
        )
    ]
)  # fmt: skip


@jit
def _outputs(s, job):
    """Compute some positions of some blocks of outputs."""
    strip, rest = job % s.strips, job // s.strips
    chunk, group = rest % s.chunks, rest // s.chunks
    begin = strip * s.strip
    end = min(begin + s.strip, s.positions)
    acc = np.empty(s.acc_words, np.int32)
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
        place = group * s.blocks + block
        weights = s.weights + place * s.block_bytes
        start = s.start + place * s.columns * 4
        p = begin
        while p < end:
            few = end - p <= s.tail_rows
            rows = min(end - p, s.rows)
            tile = short if few else whole
            bases = s.bases + 8 * p
            if rows == s.rows:
                more = (s.stage, channel, p)
                call(stored, (data, bases, s.taps, s.runs, s.words, weights, start, *more))
            else:
                call(tile, (sums, data, bases, s.taps, s.runs, s.words, weights, start))
                call(s.store, (sums, 4 * width, rows, count, s.stage, channel, p))
            p += rows


@jit
def _channels(s, job):
    """Compute some positions of all channels, one channel a group."""
    begin = job * s.strip
    count = min(s.strip, s.positions - begin)
    bases = s.bases + 8 * begin
    for block in range(s.blocks):
        first = block * s.columns
        data = s.data + block * s.group_bytes
        weights, start = s.weights + block * s.block_bytes, s.start + first * 4
        stored = s.stored_1 if block == s.blocks - 1 else s.stored_2
        more = (s.stage, first, begin)
        call(stored, (data, bases, s.taps, s.words, weights, start, count, *more))


@jit
def _largest(s, job):
    """Compute one strip of maximum pooling."""
    begin = job * s.strip
    count = min(s.strip, s.positions - begin)
    table = s.bases + 8 * begin * s.words
    call(s.whole_1, (s.out, s.out_at + 8 * begin, s.data, table, s.words, count, s.channels))


@jit
def _apply(s, job):
    """Pass one line of float32 positions through the output stage."""
    source = s.data + bytes_at(s.bases, 8 * s.positions).view(np.int64)[job]
    call(s.store, (source, s.pixels, s.line, s.channels, s.stage, 0, job * s.line))


@jit
def _fill(s, job):
    """Fill the border of one image with zeros."""
    row = s.line * s.pixels
    height = s.positions
    side = s.border_w * s.pixels
    image = bytes_at(s.data + job * height * row, height * row)
    zero = np.uint8(s.zero)
    image[: s.border_h * row] = zero
    image[(height - s.border_h) * row :] = zero
    if side:
        for i in range(s.border_h, height - s.border_h):
            image[i * row : i * row + side] = zero
            image[(i + 1) * row - side : (i + 1) * row] = zero


@jit
def _job(s, job):
    """Do one job of a step."""
    if s.kind == OUTPUTS:
        _outputs(s, job)
    elif s.kind == CHANNELS:
        _channels(s, job)
    elif s.kind == LARGEST:
        _largest(s, job)
    elif s.kind == APPLY:
        _apply(s, job)
    else:
        _fill(s, job)


@jit
def _jobs(s):
    """Return how many jobs a step is cut into; they can be done in any order."""
    if s.kind == OUTPUTS:
        return s.strips * s.chunks * s.groups
    if s.kind == APPLY:
        return s.positions
    return s.images if s.kind == FILL else s.strips


@parallel_jit
def _parallel(steps, i, jobs):
    """Do the jobs of step i on all threads."""
    for job in prange(jobs):
        _job(steps[i], np.int64(job))


@jit
def _run(steps, begin, end, threads):
    """Run steps [begin, end), one after the other."""
    for i in range(begin, end):
        jobs = _jobs(steps[i])
        if jobs == 1 or threads == 1 or steps[i].kind == FILL:
            for job in range(jobs):
                _job(steps[i], job)
        else:
            _parallel(steps, i, jobs)


def run_steps(steps: np.ndarray, begin: int, end: int, threads: int) -> None:
    """Run steps [begin, end) of a table of `STEP`, one after the other."""
    if threads == 1:
        _run(steps, begin, end, 1)
        return
    with parallel_entry():
        _run(steps, begin, end, threads)

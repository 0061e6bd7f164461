"""Convolution with one input channel a group: rows of taps, no matrix product.

A plane is first copied into one with its padding around it, so that the loops over a row
have no edges; then each output row adds up its taps row by row, three at a time where the
kernel is three wide, in the order of the reference.
"""

from __future__ import annotations

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange
from kernels.cpu.output import stage_args, store_run
from kernels.output import CheckedStage

__all__ = ["conv2d", "conv2d_int8"]


@jit
def _add_taps(row, taps, stride, dilation, line):
    """Add ``sum over v of row[j * stride + v * dilation] * taps[v]`` to ``line[j]``."""
    if taps.size == 3 and dilation == 1:
        a, b, c = taps[0], taps[1], taps[2]
        if stride == 1:
            for j in range(line.size):
                line[j] = line[j] + row[j] * a + row[j + 1] * b + row[j + 2] * c
        else:
            for j in range(line.size):
                k = j * stride
                line[j] = line[j] + row[k] * a + row[k + 1] * b + row[k + 2] * c
        return
    for v in range(taps.size):
        tap, left = taps[v], v * dilation
        for j in range(line.size):
            line[j] += row[left + j * stride] * tap


@jit
def _copy_padded(plane, pad, offset, out):
    """Copy a plane less `offset` into the middle of `out`, zeros around it."""
    height, width = plane.shape
    for r in range(out.shape[0]):
        line = out[r]
        if r < pad[0] or r >= pad[0] + height:
            line[:] = 0
            continue
        line[: pad[1]] = 0
        line[pad[1] + width :] = 0
        source = plane[r - pad[0]]
        for j in range(width):
            line[pad[1] + j] = source[j] - offset


@parallel_jit
def _float(x, w, bias, stride, pad, dilation, out):
    n, outs, out_h, _ = out.shape
    multiple = outs // x.shape[1]
    size = x.shape[2] + 2 * pad[0], x.shape[3] + 2 * pad[1]
    for job in prange(n * x.shape[1]):
        b, c = job // x.shape[1], job % x.shape[1]
        plane = np.empty(size, np.float32)
        _copy_padded(x[b, c], pad, np.float32(0), plane)
        for o in range(c * multiple, (c + 1) * multiple):
            for i in range(out_h):
                line = out[b, o, i]
                line[:] = np.float32(0)
                for u in range(w.shape[2]):
                    row = plane[i * stride[0] + u * dilation[0]]
                    _add_taps(row, w[o, 0, u], stride[1], dilation[1], line)
                line += bias[o]


def conv2d(x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """See `kernels.conv2d`; the taps are added in the reference's order."""
    out = np.empty((x.shape[0], w.shape[0], *g.out_size), np.float32)
    with parallel_entry():
        _float(x, w, bias, g.stride, g.pad, g.dilation, out)
    return out


@parallel_jit
def _int8(x, w, bias, x_offset, stride, pad, dilation, stage, out):
    n, outs, out_h, out_w = out.shape
    multiple = outs // x.shape[1]
    size = x.shape[2] + 2 * pad[0], x.shape[3] + 2 * pad[1]
    for job in prange(n * x.shape[1]):
        b, c = job // x.shape[1], job % x.shape[1]
        plane = np.empty(size, np.int32)
        _copy_padded(x[b, c], pad, x_offset, plane)
        acc = np.empty(out_w, np.int32)
        for o in range(c * multiple, (c + 1) * multiple):
            for i in range(out_h):
                acc[:] = 0
                for u in range(w.shape[2]):
                    row = plane[i * stride[0] + u * dilation[0]]
                    _add_taps(row, w[o, 0, u], stride[1], dilation[1], acc)
                store_run(acc, bias[o], o, stage, out[b, o, i])


def conv2d_int8(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    x_offset: int,
    g: ConvGeometry,
    stage: CheckedStage,
) -> np.ndarray:
    """See `kernels.conv2d_int8`."""
    out = np.empty((x.shape[0], w.shape[0], *g.out_size), stage.dtype)
    taps = w.astype(np.int32)
    with parallel_entry():
        _int8(
            x, taps, bias, np.int32(x_offset), g.stride, g.pad, g.dilation, stage_args(stage), out
        )
    return out

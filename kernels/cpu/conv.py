"""2-D convolution: BLAS over gathered windows in float32, the integer product in INT8.

Depthwise convolution (one channel a group) has loops of its own in `kernels.cpu.depthwise`.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu import depthwise
from kernels.cpu.blas import scratch, spread
from kernels.cpu.gemm import COLUMNS, multiply, pack_weights
from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange
from kernels.cpu.output import stage_args, store_run
from kernels.output import CheckedStage

__all__ = ["conv2d", "conv2d_int8", "to_nhwc"]

#: Output positions of a strip in INT8: 16 tiles, which read a block of weights in turn.
_STRIP = 96
#: Channels transposed together when an image is laid out anew.
_CHANNELS = 32
#: Values gathered at a time in float: about so many, but not fewer columns than pay for BLAS.
_COLUMN_VALUES = 1 << 18
_LEAST_COLUMNS = 128


@jit
def _inside(width, out_w, stride, left):
    """Return the first and one past the last output column whose tap is in the image."""
    first = 0 if left >= 0 else (-left + stride - 1) // stride
    last = (width - left + stride - 1) // stride
    first = min(first, out_w)
    return first, max(min(last, out_w), first)


@jit
def _gather(x, kernel, stride, pad, dilation, first, columns):
    """Fill ``columns[c, u, v, i, j]`` with channel c under tap (u, v) of output row first + i."""
    channels, height, width = x.shape
    rows, out_w = columns.shape[3], columns.shape[4]
    for c in range(channels):
        for u in range(kernel[0]):
            for v in range(kernel[1]):
                left = v * dilation[1] - pad[1]
                begin, end = _inside(width, out_w, stride[1], left)
                for i in range(rows):
                    line = columns[c, u, v, i]
                    row = (first + i) * stride[0] + u * dilation[0] - pad[0]
                    if row < 0 or row >= height:
                        line[:] = np.float32(0)
                        continue
                    line[:begin] = np.float32(0)
                    line[end:] = np.float32(0)
                    if stride[1] == 1:
                        line[begin:end] = x[c, row, left + begin : left + end]
                    else:
                        for j in range(begin, end):
                            line[j] = x[c, row, left + j * stride[1]]


def conv2d(x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """See `kernels.conv2d`."""
    if w.shape[1] == 1 and g.group > 1:
        return depthwise.conv2d(x, w, bias, g)
    out_h, out_w = g.out_size
    y = np.empty((x.shape[0], w.shape[0], out_h, out_w), np.float32)
    depth = w[0].size
    rows = max(1, max(_LEAST_COLUMNS, _COLUMN_VALUES // max(depth, 1)) // max(out_w, 1))
    spread(
        [
            partial(_conv_rows, x[i], w, bias, g, first, y[i, :, first : first + rows])
            for i in range(x.shape[0])
            for first in range(0, out_h, rows)
        ]
    )
    return y


def _conv_rows(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry, first: int, y: np.ndarray
) -> None:
    """Compute the output rows (O, R, W') of one image from `first` on."""
    channels, outs, per = x.shape[0], w.shape[0] // g.group, w.shape[1]
    rows, out_w = y.shape[1:]
    if g.kernel == (1, 1) and g.stride == (1, 1) and g.pad == (0, 0):
        columns = x[:, first : first + rows].reshape(channels, -1)
    else:
        size = channels * g.kernel[0] * g.kernel[1] * rows * out_w
        gathered = scratch(size).reshape(channels, *g.kernel, rows, out_w)
        _gather(x, g.kernel, g.stride, g.pad, g.dilation, first, gathered)
        columns = gathered.reshape(-1, rows * out_w)
    depth = per * g.kernel[0] * g.kernel[1]
    for k in range(g.group):
        weights = w[k * outs : (k + 1) * outs].reshape(outs, depth)
        product = weights @ columns[k * depth : (k + 1) * depth]
        product += bias[k * outs : (k + 1) * outs, None]
        y[k * outs : (k + 1) * outs] = product.reshape(outs, rows, out_w)


@jit
def _interleave(rows, offset, line):
    """Fill ``line[j, c] = rows[c, j] - offset``, a few channels at a time.

    They share the cache lines that are written.
    """
    channels, width = rows.shape
    for first in range(0, channels, _CHANNELS):
        last = min(first + _CHANNELS, channels)
        for j in range(width):
            for c in range(first, last):
                line[j, c] = np.int16(rows[c, j]) - offset


@parallel_jit
def _to_nhwc(x, offset, pad, out):
    n, _, height, width = x.shape
    rows = height + 2 * pad[0]
    for index in prange(n * rows):
        job = np.int64(index)
        i, r = job // rows, job % rows - pad[0]
        line = out[i, r + pad[0]]
        if r < 0 or r >= height:
            line[:] = 0
            continue
        line[: pad[1]] = 0
        line[pad[1] + width :] = 0
        _interleave(x[i, :, r], offset, line[pad[1] : pad[1] + width])


def to_nhwc(x: np.ndarray, x_offset: int, pad: tuple[int, int]) -> np.ndarray:
    """Return int8 (N,C,H,W) less the offset as int16 (N,H+2ph,W+2pw,C), zeros around it.

    One element behind the last may be read: it is part of the memory.
    """
    n, channels, height, width = x.shape
    shape = n, height + 2 * pad[0], width + 2 * pad[1], channels
    memory = np.zeros(math.prod(shape) + 1, np.int16)
    out = memory[:-1].reshape(shape)
    with parallel_entry():
        _to_nhwc(x, np.int16(x_offset), pad, out)
    return out


@jit
def _strip(image, bases, taps, weights, bias, stage, channel, outs, first, out):
    """Compute the outputs of a group for a strip of positions from `first` on.

    `out` holds the planes of all channels (O, P), the group's from `channel` on.
    """
    acc = np.empty((COLUMNS, bases.size), np.int32)
    for block in range(weights.shape[0]):
        multiply(image, bases, taps, weights[block], acc)
        start = block * COLUMNS
        for o in range(min(COLUMNS, outs - start)):
            c = channel + start + o
            plane = out[c]
            store_run(acc[o], bias[c], c, stage, plane[first : first + bases.size])


@parallel_jit
def _conv_int8(image, shape, taps, weights, bias, stride, stage, out, out_w):
    """Find where the positions of each strip begin, and compute it."""
    groups = weights.shape[0]
    height, width, channels = shape
    n, outs, pixels = out.shape
    per_in, per_out = channels // groups, outs // groups
    strips = (pixels + _STRIP - 1) // _STRIP
    for index in prange(n * groups * strips):
        job = np.int64(index)
        i, k, first = job // (groups * strips), (job // strips) % groups, job % strips * _STRIP
        last = min(first + _STRIP, pixels)
        bases = np.empty(last - first, np.int64)
        for p in range(first, last):
            top, left = p // out_w * stride[0], p % out_w * stride[1]
            bases[p - first] = ((i * height + top) * width + left) * channels + k * per_in
        channel = k * per_out
        _strip(image, bases, taps, weights[k], bias, stage, channel, per_out, first, out[i])


def _runs(w: np.ndarray, g: ConvGeometry, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights as runs of channels (g, O/g, T, K), and where each run begins.

    With neighbouring taps side by side in memory, a whole row of the kernel is one run.
    """
    per = w.shape[1]
    channels = per * g.group
    rows = np.arange(g.kernel[0]) * g.dilation[0] * width * channels
    by_tap = np.ascontiguousarray(w.transpose(0, 2, 3, 1)).reshape(
        g.group, w.shape[0] // g.group, *g.kernel, per
    )
    if g.group == 1 and g.dilation[1] == 1:
        return by_tap.reshape(*by_tap.shape[:3], -1), rows
    columns = np.arange(g.kernel[1]) * g.dilation[1] * channels
    return by_tap.reshape(*by_tap.shape[:2], -1, per), (rows[:, None] + columns).reshape(-1)


def conv2d_int8(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    x_offset: int,
    g: ConvGeometry,
    stage: CheckedStage,
) -> np.ndarray:
    """See `kernels.conv2d_int8`."""
    if w.shape[1] == 1 and g.group > 1:
        return depthwise.conv2d_int8(x, w, bias, x_offset, g, stage)
    out = np.empty((x.shape[0], w.shape[0], *g.out_size), stage.dtype)
    if not out.size:
        return out
    image = to_nhwc(x, x_offset, g.pad)
    runs, taps = _runs(w, g, image.shape[2])
    with parallel_entry():
        _conv_int8(
            image.reshape(-1), image.shape[1:], taps, pack_weights(runs), bias, g.stride,
            stage_args(stage), out.reshape(*out.shape[:2], -1), g.out_size[1],
        )  # fmt: skip
    return out

"""2-D convolution: BLAS over gathered windows in float32, the integer product in INT8.

Depthwise convolution (one channel a group) has loops of its own in `kernels.cpu.depthwise`.
"""

from __future__ import annotations

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu import depthwise
from kernels.cpu.gemm import dot_tile, padded
from kernels.cpu.jit import parallel_entry, parallel_jit, prange
from kernels.cpu.output import stage_args, store_run
from kernels.output import CheckedStage

__all__ = ["conv2d", "conv2d_int8", "to_nhwc"]

#: Output positions gathered at a time: their windows stay in the second-level cache.
_TILE = 64


@parallel_jit
def _gather(x, kernel, stride, pad, dilation, columns):
    """Fill ``columns[c, u, v, i, j]`` with the value of channel c under tap (u, v)."""
    channels, height, width = x.shape
    out_h, out_w = columns.shape[3], columns.shape[4]
    for cu in prange(channels * kernel[0]):
        c, u = cu // kernel[0], cu % kernel[0]
        for v in range(kernel[1]):
            left = v * dilation[1] - pad[1]
            for i in range(out_h):
                row = i * stride[0] + u * dilation[0] - pad[0]
                for j in range(out_w):
                    column = j * stride[1] + left
                    inside = 0 <= row < height and 0 <= column < width
                    columns[c, u, v, i, j] = x[c, row, column] if inside else np.float32(0)


def conv2d(x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """See `kernels.conv2d`."""
    if w.shape[1] == 1 and g.group > 1:
        return depthwise.conv2d(x, w, bias, g)
    n, channels = x.shape[:2]
    outs, per = w.shape[0] // g.group, w.shape[1]
    rows = w.reshape(g.group, outs, -1)
    y = np.empty((n, g.group, outs, g.out_size[0] * g.out_size[1]), np.float32)
    pointwise = g.kernel == (1, 1) and g.stride == (1, 1) and g.pad == (0, 0)
    columns = None if pointwise else np.empty((channels, *g.kernel, *g.out_size), np.float32)
    for i in range(n):
        data = x[i]
        if columns is not None:
            with parallel_entry():
                _gather(x[i], g.kernel, g.stride, g.pad, g.dilation, columns)
            data = columns
        data = data.reshape(g.group, per * g.kernel[0] * g.kernel[1], -1)
        for k in range(g.group):
            np.matmul(rows[k], data[k], out=y[i, k])
    y = y.reshape(n, -1, *g.out_size)
    y += bias[None, :, None, None]
    return y


@parallel_jit
def _to_nhwc(x, offset, pad, out):
    n, channels, height, width = x.shape
    rows = height + 2 * pad[0]
    for ir in prange(n * rows):
        i, r = ir // rows, ir % rows
        line = out[i, r]
        line[:] = 0
        if pad[0] <= r < pad[0] + height:
            for c in range(channels):
                for j in range(width):
                    line[pad[1] + j, c] = np.int16(x[i, c, r - pad[0], j]) - offset


def to_nhwc(x: np.ndarray, x_offset: int, pad: tuple[int, int]) -> np.ndarray:
    """Return int8 (N,C,H,W) less the offset as int16 (N,H+2ph,W+2pw,C), zeros around it."""
    n, channels, height, width = x.shape
    out = np.empty((n, height + 2 * pad[0], width + 2 * pad[1], channels), np.int16)
    with parallel_entry():
        _to_nhwc(x, np.int16(x_offset), pad, out)
    return out


@parallel_jit
def _conv_int8(image, rows, bias, kernel, stride, dilation, stage, out, out_w):
    """Gather a tile of windows, multiply it with all rows of its group, store it."""
    groups, outs, depth = rows.shape
    per = image.shape[3] // groups
    n, pixels = image.shape[0], out.shape[2]
    tiles = (pixels + _TILE - 1) // _TILE
    for job in prange(n * groups * tiles):
        i, k, first = job // (groups * tiles), (job // tiles) % groups, (job % tiles) * _TILE
        count = min(_TILE, pixels - first)
        windows = np.zeros((count, depth), np.int16)
        for p in range(count):
            top = (first + p) // out_w * stride[0]
            left = (first + p) % out_w * stride[1]
            at = 0
            for u in range(kernel[0]):
                for v in range(kernel[1]):
                    tap = image[i, top + u * dilation[0], left + v * dilation[1]]
                    for c in range(per):
                        windows[p, at + c] = tap[k * per + c]
                    at += per
        acc = np.empty((outs, count), np.int32)
        dot_tile(rows[k], windows, acc)
        for o in range(outs):
            channel = k * outs + o
            store_run(acc[o], bias[channel], channel, stage, out[i, channel, first : first + count])


def _pack_weights(w: np.ndarray, group: int) -> np.ndarray:
    """Return int8 (O, C/g, kh, kw) as int16 (g, O/g, padded(kh*kw*C/g)), channels innermost."""
    flat = w.transpose(0, 2, 3, 1).reshape(group, w.shape[0] // group, -1)
    rows = np.zeros((*flat.shape[:2], padded(flat.shape[2])), np.int16)
    rows[:, :, : flat.shape[2]] = flat
    return rows


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
    flat = out.reshape(*out.shape[:2], -1)
    with parallel_entry():
        _conv_int8(
            image,
            _pack_weights(w, g.group),
            bias,
            g.kernel,
            g.stride,
            g.dilation,
            stage_args(stage),
            flat,
            g.out_size[1],
        )
    return out

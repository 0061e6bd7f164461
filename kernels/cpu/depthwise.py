"""Convolution with one input channel a group: long loops over a plane, no matrix product.

A plane is copied into one with its padding around it. There a tap is a fixed distance in
memory, so all outputs of stride 1 come from one loop over the whole plane; the few values
that it computes across the ends of rows are passed over when rows are stored. Strides skip
rows, and columns when they are stored. Taps are added in the order of the reference.
"""

from __future__ import annotations

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange
from kernels.cpu.output import stage_args, store_run
from kernels.output import CheckedStage

__all__ = ["conv2d", "conv2d_int8"]


@jit
def _nine_taps(p, w, below, right, out):
    """Fill ``out[q]`` from a 3 x 3 kernel; slices of their own let the loop vectorize."""
    n, two = out.size, 2 * below
    a, b, c = p[:n], p[right : right + n], p[2 * right : 2 * right + n]
    d, e, f = p[below : below + n], p[below + right :][:n], p[below + 2 * right :][:n]
    g, h, i = p[two : two + n], p[two + right :][:n], p[two + 2 * right :][:n]
    w0, w1, w2, w3, w4 = w[0, 0], w[0, 1], w[0, 2], w[1, 0], w[1, 1]
    w5, w6, w7, w8 = w[1, 2], w[2, 0], w[2, 1], w[2, 2]
    for q in range(n):
        top = a[q] * w0 + b[q] * w1 + c[q] * w2
        middle = top + d[q] * w3 + e[q] * w4 + f[q] * w5
        out[q] = middle + g[q] * w6 + h[q] * w7 + i[q] * w8


@jit
def _correlate(p, w, below, right, out):
    """Fill ``out[q] = sum over u, v of p[q + u * below + v * right] * w[u, v]``."""
    if w.shape[0] == 3 and w.shape[1] == 3:
        _nine_taps(p, w, below, right, out)
        return
    out[:] = 0
    for u in range(w.shape[0]):
        for v in range(w.shape[1]):
            shifted, tap = p[u * below + v * right :][: out.size], w[u, v]
            for q in range(out.size):
                out[q] += shifted[q] * tap


@jit
def _copy_padded(plane, pad, offset, out):
    """Copy a plane less `offset` into the middle of `out`, zeros around it."""
    height, width = plane.shape
    out[: pad[0]] = 0
    out[pad[0] + height :] = 0
    for r in range(height):
        line, source = out[pad[0] + r], plane[r]
        line[: pad[1]] = 0
        line[pad[1] + width :] = 0
        middle = line[pad[1] : pad[1] + width]
        for j in range(width):
            middle[j] = source[j] - offset


@jit
def _sums(plane, w, stride, dilation, sums):
    """Fill row i of `sums` (H', width of the plane) as far as the kernel fits into the row."""
    width = plane.shape[1]
    below, right = dilation[0] * width, dilation[1]
    reach = (w.shape[0] - 1) * below + (w.shape[1] - 1) * right
    flat, out = plane.reshape(-1), sums.reshape(-1)
    if stride[0] == 1:
        _correlate(flat, w, below, right, out[: flat.size - reach])
        return
    for i in range(sums.shape[0]):
        start = i * stride[0] * width
        length = min(width, flat.size - reach - start)
        _correlate(flat[start:], w, below, right, out[i * width : i * width + length])


@jit
def _float_plane(x, w, bias, stride, pad, dilation, out):
    """Compute the output planes (M, H', W') of one channel (H, W)."""
    size = x.shape[0] + 2 * pad[0], x.shape[1] + 2 * pad[1]
    plane = np.empty(size, np.float32)
    sums = np.empty((out.shape[1], size[1]), np.float32)
    _copy_padded(x, pad, np.float32(0), plane)
    for o in range(out.shape[0]):
        _sums(plane, w[o, 0], stride, dilation, sums)
        shift = bias[o]
        for i in range(out.shape[1]):
            line, source = out[o, i], sums[i]
            if stride[1] == 1:
                for j in range(line.size):
                    line[j] = source[j] + shift
            else:
                for j in range(line.size):
                    line[j] = source[j * stride[1]] + shift


@parallel_jit
def _float(x, w, bias, stride, pad, dilation, out):
    n, channels = x.shape[:2]
    multiple = out.shape[1] // channels
    for index in prange(n * channels):
        job = np.int64(index)
        b, c = job // channels, job % channels
        a, z = c * multiple, (c + 1) * multiple
        _float_plane(x[b, c], w[a:z], bias[a:z], stride, pad, dilation, out[b, a:z])


def conv2d(x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """See `kernels.conv2d`."""
    out = np.empty((x.shape[0], w.shape[0], *g.out_size), np.float32)
    with parallel_entry():
        _float(x, w, bias, g.stride, g.pad, g.dilation, out)
    return out


@jit
def _int8_plane(x, w, bias, x_offset, first, stride, pad, dilation, stage, out):
    """Compute the output planes (M, H', W') of one channel (H, W); `first` is their channel."""
    size = x.shape[0] + 2 * pad[0], x.shape[1] + 2 * pad[1]
    plane = np.empty(size, np.int32)
    sums = np.empty((out.shape[1], size[1]), np.int32)
    acc = np.empty(out.shape[2], np.int32)
    _copy_padded(x, pad, x_offset, plane)
    for o in range(out.shape[0]):
        _sums(plane, w[o, 0], stride, dilation, sums)
        for i in range(out.shape[1]):
            source = sums[i]
            for j in range(acc.size):
                acc[j] = source[j * stride[1]]
            store_run(acc, bias[first + o], first + o, stage, out[o, i])


@parallel_jit
def _int8(x, w, bias, x_offset, stride, pad, dilation, stage, out):
    n, channels = x.shape[:2]
    multiple = out.shape[1] // channels
    for index in prange(n * channels):
        job = np.int64(index)
        b, c = job // channels, job % channels
        a, z = c * multiple, (c + 1) * multiple
        _int8_plane(x[b, c], w[a:z], bias, x_offset, a, stride, pad, dilation, stage, out[b, a:z])


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

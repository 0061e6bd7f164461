"""Convolution with one input channel a group: loops over rows, no matrix product."""

from __future__ import annotations

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange
from kernels.cpu.output import stage_args, store_run
from kernels.output import CheckedStage

__all__ = ["conv2d", "conv2d_int8"]


@jit
def _inside(width, out_w, stride, left):
    """Return the first and one past the last output column whose tap is in the image."""
    first = 0 if left >= 0 else (-left + stride - 1) // stride
    last = (width - left + stride - 1) // stride
    return min(first, out_w), max(min(last, out_w), 0)


@parallel_jit
def _float(x, w, bias, stride, pad, dilation, out):
    n, outs, out_h, out_w = out.shape
    height, width = x.shape[2], x.shape[3]
    multiple = outs // x.shape[1]
    for job in prange(n * outs):
        b, o = job // outs, job % outs
        plane = x[b, o // multiple]
        for i in range(out_h):
            line = out[b, o, i]
            line[:] = np.float32(0)
            for u in range(w.shape[2]):
                row = i * stride[0] + u * dilation[0] - pad[0]
                if row < 0 or row >= height:
                    continue
                for v in range(w.shape[3]):
                    tap = w[o, 0, u, v]
                    left = v * dilation[1] - pad[1]
                    first, last = _inside(width, out_w, stride[1], left)
                    if stride[1] == 1:
                        for j in range(first, last):
                            line[j] += plane[row, left + j] * tap
                    else:
                        for j in range(first, last):
                            line[j] += plane[row, left + j * stride[1]] * tap
            for j in range(out_w):
                line[j] += bias[o]


def conv2d(x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """See `kernels.conv2d`; the taps are added in the reference's order."""
    out = np.empty((x.shape[0], w.shape[0], *g.out_size), np.float32)
    with parallel_entry():
        _float(x, w, bias, g.stride, g.pad, g.dilation, out)
    return out


@parallel_jit
def _int8(x, w, bias, x_offset, stride, pad, dilation, stage, out):
    n, outs, out_h, out_w = out.shape
    height, width = x.shape[2], x.shape[3]
    multiple = outs // x.shape[1]
    for job in prange(n * outs):
        b, o = job // outs, job % outs
        plane = x[b, o // multiple]
        acc = np.empty(out_w, np.int32)
        for i in range(out_h):
            acc[:] = 0
            for u in range(w.shape[2]):
                row = i * stride[0] + u * dilation[0] - pad[0]
                if row < 0 or row >= height:
                    continue
                for v in range(w.shape[3]):
                    tap = np.int32(w[o, 0, u, v])
                    left = v * dilation[1] - pad[1]
                    first, last = _inside(width, out_w, stride[1], left)
                    if stride[1] == 1:
                        for j in range(first, last):
                            acc[j] += (np.int32(plane[row, left + j]) - x_offset) * tap
                    else:
                        for j in range(first, last):
                            acc[j] += (np.int32(plane[row, left + j * stride[1]]) - x_offset) * tap
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
    with parallel_entry():
        _int8(x, w, bias, np.int32(x_offset), g.stride, g.pad, g.dilation, stage_args(stage), out)
    return out

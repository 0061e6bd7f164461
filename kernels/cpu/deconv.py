"""2-D deconvolution: a product over the input channels, then every tap added in place."""

from __future__ import annotations

from functools import partial

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu.blas import scratch, spread
from kernels.cpu.conv import to_nhwc
from kernels.cpu.gemm import dot_tile, padded
from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange
from kernels.cpu.output import stage_args, store_run
from kernels.output import CheckedStage

__all__ = ["deconv2d", "deconv2d_int8"]


@jit
def _scatter(taps, bias, stride, pad, dilation, out):
    """Add ``taps[o, u, v, i, j]`` to the outputs (O, H', W') it belongs to."""
    outs, kh, kw, height, width = taps.shape
    for o in range(outs):
        plane = out[o]
        plane[:] = np.float32(0)
        for u in range(kh):
            for v in range(kw):
                for i in range(height):
                    row = i * stride[0] + u * dilation[0] - pad[0]
                    if row < 0 or row >= plane.shape[0]:
                        continue
                    for j in range(width):
                        column = j * stride[1] + v * dilation[1] - pad[1]
                        if 0 <= column < plane.shape[1]:
                            plane[row, column] += taps[o, u, v, i, j]
        plane += bias[o]


def deconv2d(x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """See `kernels.deconv2d`."""
    n, _, height, width = x.shape
    per, size = w.shape[1], g.kernel[0] * g.kernel[1]
    rows = w.reshape(g.group, -1, per * size)
    data = x.reshape(n, g.group, w.shape[0] // g.group, height * width)
    out = np.empty((n, g.group * per, *g.out_size), np.float32)

    def one_image(i: int) -> None:
        taps = scratch(g.group * per * size * height * width)
        taps = taps.reshape(g.group, per * size, height * width)
        for k in range(g.group):
            np.matmul(rows[k].T, data[i, k], out=taps[k])
        by_tap = taps.reshape(g.group * per, *g.kernel, height, width)
        _scatter(by_tap, bias, g.stride, g.pad, g.dilation, out[i])

    spread([partial(one_image, i) for i in range(n)])
    return out


@parallel_jit
def _deconv_int8(image, rows, bias, kernel, stride, pad, dilation, stage, out):
    """For one image and output channel: products of all pixels with its taps, then add."""
    groups, per_out, taps, depth = rows.shape
    n, height, width, channels = image.shape
    per = channels // groups
    outs = groups * per_out
    for job in prange(n * outs):
        b, o = job // outs, job % outs
        k = o // per_out
        acc = np.zeros((out.shape[2], out.shape[3]), np.int32)
        line = np.zeros((width, depth), np.int16)
        products = np.empty((taps, width), np.int32)
        for i in range(height):
            for j in range(width):
                for c in range(per):
                    line[j, c] = image[b, i, j, k * per + c]
            dot_tile(rows[k, o % per_out], line, products)
            for t in range(taps):
                row = i * stride[0] + t // kernel[1] * dilation[0] - pad[0]
                if row < 0 or row >= out.shape[2]:
                    continue
                for j in range(width):
                    column = j * stride[1] + t % kernel[1] * dilation[1] - pad[1]
                    if 0 <= column < out.shape[3]:
                        acc[row, column] += products[t, j]
        for i in range(out.shape[2]):
            store_run(acc[i], bias[o], o, stage, out[b, o, i])


def deconv2d_int8(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    x_offset: int,
    g: ConvGeometry,
    stage: CheckedStage,
) -> np.ndarray:
    """See `kernels.deconv2d_int8`."""
    per_in, per_out = w.shape[0] // g.group, w.shape[1]
    by_tap = w.reshape(g.group, per_in, per_out, -1).transpose(0, 2, 3, 1)
    rows = np.zeros((*by_tap.shape[:3], padded(per_in)), np.int16)
    rows[..., :per_in] = by_tap
    out = np.empty((x.shape[0], g.group * per_out, *g.out_size), stage.dtype)
    image = to_nhwc(x, x_offset, (0, 0))
    with parallel_entry():
        _deconv_int8(
            image, rows, bias, g.kernel, g.stride, g.pad, g.dilation, stage_args(stage), out
        )
    return out

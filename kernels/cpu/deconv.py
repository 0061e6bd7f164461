"""2-D deconvolution: a product over the input channels, then every tap added in place."""

from __future__ import annotations

from functools import partial

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu.blas import scratch, spread
from kernels.cpu.conv import to_nhwc
from kernels.cpu.gemm import COLUMNS, multiply, pack_weights
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


@jit
def _add_block(products, first, count, i, kernel, stride, pad, dilation, acc):
    """Add the products (COLUMNS, W) of taps from `first` on, of input row i, where they belong."""
    for t in range(count):
        row = i * stride[0] + (first + t) // kernel[1] * dilation[0] - pad[0]
        if row < 0 or row >= acc.shape[0]:
            continue
        left = (first + t) % kernel[1] * dilation[1] - pad[1]
        for j in range(products.shape[1]):
            column = j * stride[1] + left
            if 0 <= column < acc.shape[1]:
                acc[row, column] += products[t, j]


@parallel_jit
def _deconv_int8(image, shape, weights, bias, per_out, kernel, stride, pad, dilation, stage, out):
    """For one image and output channel: products of each position with all taps, then add."""
    height, width, channels = shape
    n, outs, out_h, out_w = out.shape
    per_in = channels // (outs // per_out)
    size = kernel[0] * kernel[1]
    for job in prange(n * outs):
        b, o = np.int64(job) // outs, np.int64(job) % outs
        acc = np.zeros((out_h, out_w), np.int32)
        products = np.empty((COLUMNS, width), np.int32)
        bases = np.empty(width, np.int64)
        for i in range(height):
            for j in range(width):
                bases[j] = ((b * height + i) * width + j) * channels + o // per_out * per_in
            for block in range(weights.shape[1]):
                multiply(image, bases, np.zeros(1, np.int64), weights[o, block], products)
                first = block * COLUMNS
                count = min(COLUMNS, size - first)
                _add_block(products, first, count, i, kernel, stride, pad, dilation, acc)
        for i in range(out_h):
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
    outs = g.group * per_out
    by_tap = w.reshape(g.group, per_in, per_out, -1).transpose(0, 2, 3, 1)
    weights = pack_weights(np.ascontiguousarray(by_tap).reshape(outs, -1, 1, per_in))
    out = np.empty((x.shape[0], outs, *g.out_size), stage.dtype)
    image = to_nhwc(x, x_offset, (0, 0))
    with parallel_entry():
        _deconv_int8(
            image.reshape(-1), image.shape[1:], weights, bias, per_out, g.kernel, g.stride,
            g.pad, g.dilation, stage_args(stage), out,
        )  # fmt: skip
    return out

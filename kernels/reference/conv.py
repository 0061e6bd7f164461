"""2-D convolution in NumPy: windows as a matrix, one product a group."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kernels.conv import ConvGeometry
from kernels.output import CheckedStage
from kernels.reference.output import store

__all__ = ["conv2d", "conv2d_int8", "prepare"]


def _windows(x: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """Return (N, C, kh, kw, H', W'): for each tap the values under it."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = g.kernel, g.stride, g.pad, g.dilation
    # the one window of a kernel larger than the padded image reads zeros beyond it
    below = max(ph, (kh - 1) * dh + 1 - ph - x.shape[2])
    right = max(pw, (kw - 1) * dw + 1 - pw - x.shape[3])
    padded = np.pad(x, ((0, 0), (0, 0), (ph, below), (pw, right)))
    taps = [
        [
            padded[:, :, u * dh :, v * dw :][:, :, ::sh, ::sw][
                :, :, : g.out_size[0], : g.out_size[1]
            ]
            for v in range(kw)
        ]
        for u in range(kh)
    ]
    return np.stack([np.stack(row, axis=2) for row in taps], axis=2)


def _products(x: np.ndarray, w: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """Return the sums (N, O, H', W') in the dtype of the operands."""
    n, outs = x.shape[0], w.shape[0]
    if w.shape[1] == 1 and g.group > 1:
        return _depthwise(x, w, g)
    depth = w.shape[1] * w.shape[2] * w.shape[3]
    columns = _windows(x, g).reshape(n, g.group, depth, g.out_size[0] * g.out_size[1])
    rows = w.reshape(g.group, outs // g.group, -1)
    y = np.empty((n, g.group, outs // g.group, columns.shape[3]), x.dtype)
    for i in range(n):
        for k in range(g.group):
            np.matmul(rows[k], columns[i, k], out=y[i, k])
    return y.reshape(n, outs, *g.out_size)


def _depthwise(x: np.ndarray, w: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """Add up tap by tap in row order: with one channel a group there is no product."""
    windows = _windows(x, g)
    multiple = w.shape[0] // x.shape[1]
    y = np.zeros((x.shape[0], w.shape[0], *g.out_size), x.dtype)
    for u in range(g.kernel[0]):
        for v in range(g.kernel[1]):
            y += np.repeat(windows[:, :, u, v], multiple, axis=1) * w[None, :, 0, u, v, None, None]
    return y


def conv2d(x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """See `kernels.conv2d`."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are values like others
        return _products(x, w, g) + bias[None, :, None, None]


def conv2d_int8(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    x_offset: int,
    g: ConvGeometry,
    stage: CheckedStage,
) -> np.ndarray:
    """See `kernels.conv2d_int8`; float64 holds every sum below 2**53 exactly."""
    sums = _products(x.astype(np.float64) - x_offset, w.astype(np.float64), g)
    return store((sums + bias[None, :, None, None]).astype(np.int32), stage)


def prepare(
    shape: tuple[int, int, int, int],
    w: np.ndarray,
    bias: np.ndarray,
    x_offset: int,
    g: ConvGeometry,
    stage: CheckedStage,
    channels_last: bool,
) -> Callable[[np.ndarray], np.ndarray]:
    """See `kernels.prepare_conv2d`."""

    def run(x: np.ndarray) -> np.ndarray:
        x = x.transpose(0, 3, 1, 2) if channels_last else x
        if w.dtype == np.float32:
            y = conv2d(x, w, bias, g)
        else:
            y = conv2d_int8(x, w, bias, x_offset, g, stage)
        return np.ascontiguousarray(y.transpose(0, 2, 3, 1)) if channels_last else y

    return run

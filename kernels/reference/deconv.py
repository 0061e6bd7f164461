"""2-D deconvolution in NumPy: one product a group, then each tap added in its place."""

from __future__ import annotations

import numpy as np

from kernels.conv import ConvGeometry
from kernels.output import CheckedStage
from kernels.reference.output import store

__all__ = ["deconv2d", "deconv2d_int8"]


def _products(x: np.ndarray, w: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """Return the sums (N, O, H', W') in the dtype of the operands."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = g.kernel, g.stride, g.pad, g.dilation
    n, _, height, width = x.shape
    per = w.shape[1]
    rows = w.reshape(g.group, -1, per * kh * kw)
    data = x.reshape(n, g.group, w.shape[0] // g.group, height * width)
    full_size = sh * (height - 1) + dh * (kh - 1) + 1, sw * (width - 1) + dw * (kw - 1) + 1
    full = np.zeros((n, g.group, per, *full_size), x.dtype)
    for i in range(n):
        for k in range(g.group):
            taps = np.matmul(rows[k].T, data[i, k]).reshape(per, kh, kw, height, width)
            for u in range(kh):
                for v in range(kw):
                    window = full[i, k, :, u * dh :, v * dw :][:, ::sh, ::sw]
                    window[:, :height, :width] += taps[:, u, v]
    out_h, out_w = g.out_size
    return full.reshape(n, g.group * per, *full.shape[3:])[:, :, ph : ph + out_h, pw : pw + out_w]


def deconv2d(x: np.ndarray, w: np.ndarray, bias: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """See `kernels.deconv2d`."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are values like others
        return _products(x, w, g) + bias[None, :, None, None]


def deconv2d_int8(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    x_offset: int,
    g: ConvGeometry,
    stage: CheckedStage,
) -> np.ndarray:
    """See `kernels.deconv2d_int8`; float64 holds every sum below 2**53 exactly."""
    sums = _products(x.astype(np.float64) - x_offset, w.astype(np.float64), g)
    return store((sums + bias[None, :, None, None]).astype(np.int32), stage)

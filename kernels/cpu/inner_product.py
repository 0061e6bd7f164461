"""Inner product: a convolution over one position, in float32 by BLAS."""

from __future__ import annotations

from functools import partial

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu.conv import prepare
from kernels.cpu.threads import spread
from kernels.output import CheckedStage

__all__ = ["inner_product", "inner_product_int8"]

#: So many products are worth a thread.
_LEAST_PRODUCTS = 1 << 20


def inner_product(x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """See `kernels.inner_product`."""
    y = np.empty((x.shape[0], w.shape[0]), np.float32)
    part = max(1, _LEAST_PRODUCTS // max(x.size, 1))
    starts = range(0, w.shape[0], part)
    spread([partial(_columns, x, w, bias, slice(i, i + part), y) for i in starts])
    return y


def _columns(x: np.ndarray, w: np.ndarray, bias: np.ndarray, part: slice, y: np.ndarray) -> None:
    y[:, part] = x @ w[part].T + bias[part]


def inner_product_int8(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, x_offset: int, stage: CheckedStage
) -> np.ndarray:
    """See `kernels.inner_product_int8`."""
    point = ConvGeometry((1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1))
    image, weights = (a.reshape(*a.shape, 1, 1) for a in (x, w))
    layer = prepare(image.shape, weights, bias, x_offset, point, stage)
    return layer(image).reshape(x.shape[0], w.shape[0])

"""Inner product in NumPy."""

from __future__ import annotations

import numpy as np

from kernels.output import CheckedStage
from kernels.reference.output import store

__all__ = ["inner_product", "inner_product_int8"]


def inner_product(x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """See `kernels.inner_product`."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are values like others
        return x @ w.T + bias


def inner_product_int8(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, x_offset: int, stage: CheckedStage
) -> np.ndarray:
    """See `kernels.inner_product_int8`; float64 holds every sum below 2**53 exactly."""
    sums = (x.astype(np.float64) - x_offset) @ w.astype(np.float64).T + bias
    return store(sums.astype(np.int32), stage)

"""ULQ's forward and backward as NumPy expressions: their definition."""

from __future__ import annotations

import numpy as np

from kernels.rounding import round_half_away
from kernels.ulq import UlqGrid

__all__ = ["backward", "forward"]


def forward(x: np.ndarray, grid: UlqGrid) -> np.ndarray:
    """See `kernels.ulq_forward`."""
    scale = np.float32(grid.scale)
    return np.rint(np.clip(x, grid.low, grid.high) / scale) * scale


def backward(x: np.ndarray, gradient: np.ndarray, grid: UlqGrid) -> tuple[np.ndarray, float, float]:
    """See `kernels.ulq_backward`."""
    above, below = x > grid.high, x < grid.low
    with np.errstate(invalid="ignore"):  # infinity has no distance to its step; it is outside
        v = x / np.float32(grid.scale)
        d = (round_half_away(v) - v) / np.float32(grid.steps)
    d = np.where(above | below, np.float32(grid.edge), d)
    by_max = (gradient * (d + above)).sum(dtype=np.float64)
    by_min = (gradient * (below - d)).sum(dtype=np.float64)
    return np.where(above | below, np.float32(0), gradient), float(by_max), float(by_min)

"""The output stage in NumPy: the definition."""

from __future__ import annotations

import numpy as np

from kernels.output import FLOATS, SUMS, CheckedStage
from kernels.rounding import round_half_away

__all__ = ["store"]


def store(acc: np.ndarray, stage: CheckedStage, divisor: np.ndarray | None = None) -> np.ndarray:
    """Apply the stage to int32 sums (N, C, ...).

    `divisor`, float32 and shaped to broadcast, divides the scale (average pooling).
    """
    if stage.kind == SUMS:
        return acc.astype(np.int32)
    shape = (1, -1) + (1,) * (acc.ndim - 2)
    scale, power = stage.scale.reshape(shape), stage.power.reshape(shape)
    if divisor is not None:
        with np.errstate(divide="ignore"):  # a window outside covers nothing
            scale = scale / divisor
    v = acc.astype(np.float32)
    if power.any():
        safe = np.where(power > 0, power, np.float32(1))
        stepped = np.clip(round_half_away(v / safe), np.float32(-32768), np.float32(32767)) * safe
        v = np.where(power > 0, stepped, v)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows saturates
        y = np.minimum(np.maximum(v * scale, stage.low), stage.high)
        if stage.kind == FLOATS:
            return y.astype(np.float32)
        q = round_half_away(y / stage.q_scale) + stage.q_offset
    return np.clip(q, stage.q_low, stage.q_high).astype(np.int8)

"""The output stage as a function that kernels call; `kernels.output` says what it does."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.affine import steps
from kernels.cuda.arrays import on_device
from kernels.cuda.jit import device_jit, mul, round_half_away
from kernels.output import CheckedStage

__all__ = ["NUMBERS", "as_float32", "as_int32", "put", "put_scaled", "put_sum", "table"]

#: How many numbers a table has before the scales of the channels, which powers of two follow.
NUMBERS = 6
_LEAST, _MOST, _NOTHING = np.float32(-32768), np.float32(32767), np.float32(0)


def table(stage: CheckedStage) -> Any:
    """Return a stage as one device array of float32: `NUMBERS`, scales, powers."""
    s = stage
    numbers = np.array([s.low, s.high, s.q_scale, s.q_offset, s.q_low, s.q_high], np.float32)
    return on_device(np.concatenate([numbers, s.scale, s.power]))


@device_jit
def as_int32(v):
    """Return a value as int32, modulo 2**32."""
    return np.int32(v)


@device_jit
def as_float32(v):
    """Return a value as float32."""
    return np.float32(v)


@device_jit
def put_scaled(out, at, v, scale, kind, stage):
    """Store the value ``v * scale`` clamped, as float32 (1) or quantized (2)."""
    y = mul(v, scale)
    y = stage[0] if y < stage[0] else y  # NaN, the average of nothing, stays
    y = stage[1] if y > stage[1] else y
    if kind == 1:
        out[at] = y
    else:
        out[at] = np.int8(np.int32(steps(y, stage[2], stage[3], stage[4], stage[5])))


@device_jit
def put(out, at, acc, channel, channels, kind, stage):
    """Store an int32 sum of a channel as it is (0), or as `put_scaled` does."""
    if kind == 0:
        out[at] = acc
        return
    v = np.float32(np.int32(acc))
    power = stage[NUMBERS + channels + channel]
    if power > _NOTHING:
        v = round_half_away(v / power)
        v = v if v > _LEAST else _LEAST
        v = mul(v if v < _MOST else _MOST, power)
    put_scaled(out, at, v, stage[NUMBERS + channel], kind, stage)


@device_jit
def put_sum(out, at, acc, channel, channels, kind, stage):
    """Store a float32 sum as it is; takes what `put` does."""
    out[at] = acc

"""The output stage as a function that kernels call; `kernels.output` says what it does."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.affine import steps
from kernels.cuda.arrays import on_device
from kernels.cuda.jit import device_jit, mul, round_half_away
from kernels.output import FLOATS, SUMS, CheckedStage

__all__ = ["NUMBERS", "as_float32", "as_int32", "put", "put_scaled", "put_sum", "table"]

#: Places in a stage's table; the scales of the channels, then powers of two, follow them.
_LOW, _HIGH, _Q_SCALE, _Q_OFFSET, _Q_LOW, _Q_HIGH, NUMBERS = range(7)
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
    """Store the value ``v * scale`` clamped, as float32 or quantized, by the kind."""
    y = mul(v, scale)
    y = stage[_LOW] if y < stage[_LOW] else y  # NaN, the average of nothing, stays
    y = stage[_HIGH] if y > stage[_HIGH] else y
    if kind == FLOATS:
        out[at] = y
    else:
        scale, offset = stage[_Q_SCALE], stage[_Q_OFFSET]
        out[at] = np.int8(np.int32(steps(y, scale, offset, stage[_Q_LOW], stage[_Q_HIGH])))


@device_jit
def put(out, at, acc, channel, channels, kind, stage):
    """Store an int32 sum of a channel as it is, or as `put_scaled` does."""
    if kind == SUMS:
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

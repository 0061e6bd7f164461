"""The output stage, compiled into the loop that made the sums."""

from __future__ import annotations

import numpy as np

from kernels.cpu.affine import steps
from kernels.cpu.jit import jit, round_half_away
from kernels.output import CheckedStage

__all__ = ["StageArgs", "stage_args", "store_run"]

StageArgs = tuple


def stage_args(stage: CheckedStage) -> StageArgs:
    """Return the stage as the tuple that `store_run` takes."""
    return (
        stage.kind,
        stage.scale,
        stage.power,
        stage.low,
        stage.high,
        stage.q_scale,
        stage.q_offset,
        stage.q_low,
        stage.q_high,
    )


@jit
def _value(acc, scale, power, low, high):
    v = np.float32(acc)
    if power > 0:
        stepped = round_half_away(v / power)
        v = min(max(stepped, np.float32(-32768)), np.float32(32767)) * power
    return min(max(v * scale, low), high)


@jit
def store_run(acc, bias, channel, stage, out):
    """Store a run of sums of one channel.

    Parameters
    ----------
    acc : int32 array (R,)
    bias : int32
    channel : int
    stage : tuple
        From `stage_args`.
    out : int32, float32 or int8 array (R,)
        As ``stage[0]`` says.
    """
    kind, scales, powers, low, high, q_scale, q_offset, q_low, q_high = stage
    scale, power = scales[channel], powers[channel]
    if kind == 0:
        for r in range(acc.size):
            out[r] = np.int32(acc[r] + bias)
    elif kind == 1:
        for r in range(acc.size):
            out[r] = _value(np.int32(acc[r] + bias), scale, power, low, high)
    else:
        for r in range(acc.size):
            y = _value(np.int32(acc[r] + bias), scale, power, low, high)
            out[r] = np.int8(steps(y, q_scale, q_offset, q_low, q_high))

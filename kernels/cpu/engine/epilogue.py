"""What a step does with its sums: the output stage in the terms of its machine code."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kernels.cpu.codegen.epilogue import FLOATS, INTEGERS, UNITS, Form
from kernels.cpu.codegen.microkernels import F32, MicroKernel
from kernels.cpu.engine.image import Image
from kernels.output import QUANTIZED, SUMS, CheckedStage
from kernels.rounding import round_half_away

__all__ = ["Writes", "output_constants", "output_form"]

#: Steps within which a value in units fits int32, with room.
_FEW_STEPS = 1 << 18


@dataclass(frozen=True)
class Writes:
    """What becomes of the sums of a step.

    Attributes
    ----------
    stage : CheckedStage
        Scale, shift, clamp and quantization, for all channels.
    floats, integers : Image or None
        Where float32 (or bare int32) and quantized values go.
    other : Image or None
        A float32 image that is added before the clamp.
    slope : float32 array (C,) or None
        What negative values are multiplied by.
    divisor : float
        Of float32 sums, before anything else.
    """

    stage: CheckedStage
    floats: Image | None = None
    integers: Image | None = None
    other: Image | None = None
    slope: np.ndarray | None = None
    divisor: float = 1.0

    @property
    def images(self) -> dict[str, Image | None]:
        """The images by their names in the table of the output stage."""
        return {"other": self.other, "floats": self.floats, "integers": self.integers}


def _limits(writes: Writes) -> tuple[float, float]:
    """Return lowest and highest step, less the offset.

    Where only integers are stored, the clamp of real values becomes one of steps: rounding
    keeps the order of values.
    """
    s = writes.stage
    low, high = float(s.q_low - s.q_offset), float(s.q_high - s.q_offset)
    if s.kind == QUANTIZED and writes.floats is None:
        with np.errstate(all="ignore"):
            clamp = [float(round_half_away(end / s.q_scale)) for end in (s.low, s.high)]
        # beyond the format all is its end: so every limit is finite and fits the integers
        low, high = (min(max(end, low), high) for end in clamp)
    return low, high


def _stored(writes: Writes) -> int:
    """Return what is added to a step that is stored."""
    image = writes.integers
    return 0 if image is None else image.operands.zero(int(writes.stage.q_offset))


def _constants(writes: Writes) -> dict[str, float]:
    """Return the constants of a stage by name, each as a float32 or an int32 holds it."""
    s = writes.stage
    (low, high), stored = _limits(writes), _stored(writes)
    with np.errstate(over="ignore"):
        reciprocal = np.float32(UNITS) / s.q_scale
        values: dict[str, float] = {
            "low": float(s.low),
            "high": float(s.high),
            "divisor": writes.divisor,
            "q_scale": float(s.q_scale),
            "q_low": low,
            "q_high": high,
            "q_stored": stored,
            "reciprocal_units": float(reciprocal),
            "low_units": low * UNITS,
            "high_units": high * UNITS,
        }
        floats = {name: float(np.float32(value)) for name, value in values.items()}
    first, last = int(low) + stored, int(high) + stored
    return floats | {
        "stored_units": (2 * stored + 1) * UNITS // 2 + 2,
        "first": first,
        "last": last,
        "first_pair": first % 2**16 * 0x10001,
        "last_pair": last % 2**16 * 0x10001,
    }


def output_constants(writes: Writes) -> np.ndarray:
    """Return the array of constants of a stage, in the order of `CONSTANTS`, as float32."""
    values = _constants(writes)
    integers = np.array([int(values[name]) % 2**32 for name in INTEGERS], np.uint32)
    floats = np.array([values[name] for name in FLOATS], np.float32)
    return np.concatenate([floats, integers.view(np.float32)])


def output_form(writes: Writes, kernel: MicroKernel, max_abs_sum: np.ndarray | None) -> Form:
    """Return which machine code a stage needs.

    Parameters
    ----------
    writes : Writes
    kernel : MicroKernel
        That makes the sums.
    max_abs_sum : float64 array (C,) or None
        The largest magnitude of the sums, if it is known.
    """
    s = writes.stage
    bare = kernel.operands is F32 or s.kind == SUMS
    clamped = s.kind != SUMS and bool(s.low > -math.inf or s.high < math.inf)
    shift = not bare and bool(s.power.any())
    constants = _constants(writes)
    simple = not (bare or shift or writes.floats or writes.other or writes.slope is not None)
    fits = False
    if simple and writes.integers is not None and max_abs_sum is not None:
        steps = max_abs_sum * s.scale.astype(np.float64) / float(s.q_scale)
        factors = s.scale.astype(np.float64) * constants["reciprocal_units"]
        # products of tiny scales would lose their last bits
        fits = bool((steps < _FEW_STEPS).all() and (factors > 1e-30).all())
    return Form(
        lanes=kernel.lanes,
        scaled=not bare,
        shift=shift,
        slope=writes.slope is not None,
        other=writes.other is not None,
        clamp=clamped and writes.floats is not None,
        floats=writes.floats is not None,
        integers="" if writes.integers is None else writes.integers.operands.data,
        divided=bare and writes.divisor != 1,
        bounded=fits,
        full=fits and constants["last"] == 255,
        careful=not 1e-30 < constants["reciprocal_units"] < 1e30,
    )

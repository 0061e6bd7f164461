"""ULQ, fake quantization with a learned range, for training: forward, backward, guards.

With a range [clip_min, clip_max] that holds zero: ``s = (clip_max - clip_min) / (2**b - 1)``,
``z = round(clip_min / s)``, and the range that the steps reach is ``[s*z, s*(z + 2**b - 1)]``.
Forward: ``y = rint(clip(x) / s) * s``. Backward, for a gradient g: x gets g inside the range
and 0 outside; with ``d = (round(v) - v) / (2**b - 1)``, where v is ``x / s`` inside the range
and ``clip_max / s`` outside of it (``clip_min / s`` lies a whole number of steps from there),

- clip_max gets the sum of ``g * (d + [x above])``,
- clip_min gets the sum of ``g * ([x below] - d)``.

All of it is float32, as in the tool whose training this reproduces; the two sums are taken in
float64. ``rint`` rounds halves to even, as torch and that tool do in training; ``round``, here
and at inference, away from zero. They differ only where a value lies exactly between two steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.affine import guard_scale
from kernels.checks import Array, check_array, check_bits
from kernels.dispatch import Device, backend
from kernels.params import QuantParams
from kernels.rounding import round_half_away

__all__ = ["ClipRange", "UlqGrid", "guard_clips", "ulq_backward", "ulq_forward", "ulq_grid"]


@dataclass(frozen=True)
class ClipRange:
    """A learned range, and the one before, to which a bad step returns.

    Never changes: threads and forked processes may share it.

    Attributes
    ----------
    high, low : float
        clip_max and clip_min.
    previous_high, previous_low : float
    """

    high: float
    low: float
    previous_high: float
    previous_low: float


@dataclass(frozen=True)
class UlqGrid:
    """The steps of a range.

    Never changes: threads and forked processes may share it.

    Attributes
    ----------
    scale : float
        A float32 value.
    zero : int
        The step of the lowest value: ``round(clip_min / scale)``.
    edge : float
        d at either end of the learned range, a float32 value.
    bits : int
        2..8.
    """

    scale: float
    zero: int
    edge: float
    bits: int = 8

    @property
    def steps(self) -> int:
        """The number of steps from the lowest value to the highest."""
        return (1 << self.bits) - 1

    @property
    def low(self) -> np.float32:
        """The lowest value, float32."""
        return np.float32(self.scale) * np.float32(self.zero)

    @property
    def high(self) -> np.float32:
        """The highest value, float32."""
        return np.float32(self.scale) * np.float32(self.zero + self.steps)

    def params(self) -> QuantParams:
        """Return scale and offset for inference: ``offset = -2**(bits-1) - zero``.

        Raises
        ------
        ValueError
            If zero lies outside the range.
        """
        half = 1 << (self.bits - 1)
        return QuantParams(self.scale, -half - self.zero, self.bits)


def guard_clips(clips: ClipRange, *, fixed_min: bool = False) -> ClipRange:
    """Return the range to use after a training step.

    Where clip_max is not above clip_min both return to their previous values; a clip_max
    below zero and a clip_min above zero return each; then `fixed_min` puts clip_min to 0.

    Parameters
    ----------
    clips : ClipRange
    fixed_min : bool
        The data is never negative, as after ReLU.

    Returns
    -------
    ClipRange
        Its previous values are the guarded ones, before `fixed_min`.

    Examples
    --------
    >>> from kernels import ClipRange, guard_clips
    >>> guard_clips(ClipRange(high=6.0, low=0.5, previous_high=5.0, previous_low=-1.0))
    ClipRange(high=6.0, low=-1.0, previous_high=6.0, previous_low=-1.0)
    """
    high, low = clips.high, clips.low
    if not high > low:
        high, low = clips.previous_high, clips.previous_low
    if high < 0:
        high = clips.previous_high
    if low > 0:
        low = clips.previous_low
    return ClipRange(high, 0.0 if fixed_min else low, high, low)


def ulq_grid(clip_max: float, clip_min: float, *, bits: int = 8) -> UlqGrid:
    """Return the steps of a range.

    Parameters
    ----------
    clip_max, clip_min : float
        clip_max above clip_min.
    bits : int
        2..8.

    Raises
    ------
    ValueError
        If the range is empty, not finite, or too wide for a scale.

    Examples
    --------
    >>> from kernels import ulq_grid
    >>> grid = ulq_grid(95.5, -32.0)
    >>> grid.scale, grid.zero, grid.params()
    (0.5, -64, QuantParams(scale=0.5, offset=-64, bits=8))
    """
    check_bits(bits)
    high, low = np.float32(clip_max), np.float32(clip_min)
    if not (np.isfinite(high) and np.isfinite(low) and high > low):
        raise ValueError(f"the range [{clip_min}, {clip_max}] is empty or not finite")
    with np.errstate(over="ignore"):
        scale = guard_scale((high - low) / np.float32((1 << bits) - 1))
    v = high / scale
    edge = (round_half_away(v) - v) / np.float32((1 << bits) - 1)
    return UlqGrid(float(scale), int(round_half_away(low / scale)), float(edge), bits)


def ulq_forward(x: Array, grid: UlqGrid, *, device: Device | str = "cpu") -> np.ndarray:
    """Fake-quantize for training: ``rint(clip(x, low, high) / scale) * scale``.

    Parameters
    ----------
    x : float32 array, any shape
        NaN stays NaN: training finds it in the loss. May lie on a CUDA device, if that is the
        one to compute; the result then lies there too, and likewise that of `ulq_backward`.
    grid : UlqGrid
    device : str

    Returns
    -------
    float32 array, shape of `x`

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import ulq_forward, ulq_grid
    >>> x = np.array([-1.0, 0.25, 0.75, 3.1, 1000.0], np.float32)
    >>> ulq_forward(x, ulq_grid(127.5, 0.0))  # halves round to even here
    array([  0. ,   0. ,   1. ,   3. , 127.5], dtype=float32)
    """
    return backend(device, "ulq").forward(check_array("x", x, np.float32, None, device), grid)


def ulq_backward(
    x: Array, gradient: Array, grid: UlqGrid, *, device: Device | str = "cpu"
) -> tuple[np.ndarray, float, float]:
    """Return the gradients of `ulq_forward`.

    Parameters
    ----------
    x : float32 array
        What `ulq_forward` was given.
    gradient : float32 array, shape of `x`
        Of the loss by its result.
    grid : UlqGrid
    device : str

    Returns
    -------
    dx : float32 array, shape of `x`
    clip_max_gradient, clip_min_gradient : float
        The same on any number of threads.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import ulq_backward, ulq_grid
    >>> x, gradient = np.array([-1, 1, 200], np.float32), np.array([2, 3, 4], np.float32)
    >>> ulq_backward(x, gradient, ulq_grid(127.5, 0.0))  # what lies outside moves the range
    (array([0., 3., 0.], dtype=float32), 4.0, 2.0)
    """
    x = check_array("x", x, np.float32, None, device)
    gradient = check_array("gradient", gradient, np.float32, None, device)
    if tuple(x.shape) != tuple(gradient.shape):
        raise ValueError(f"x has the shape {x.shape}, its gradient {gradient.shape}")
    return backend(device, "ulq").backward(x, gradient, grid)

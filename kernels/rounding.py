"""The one rule by which a value of the number format is rounded.

NumPy calls this function on arrays, numba compiles it for scalars. Code that cannot call it
states the same rule in its own terms, for which tests hold it to this one: generated machine
code (`kernels.cpu.codegen`) and CUDA, whose ``roundf`` it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["round_half_away"]


def round_half_away(v: Any) -> Any:
    """Round to the nearest integer, halves away from zero, as C's ``roundf`` does.

    ``floor(v + 0.5)`` is wrong for the largest float32 below one half and for halves
    below zero; the distance to ``trunc(v)`` is exact, so this is right for all.

    Parameters
    ----------
    v : float32 scalar or array
        NaN stays NaN, infinities stay.

    Returns
    -------
    float32 scalar or array
        Integers as floats.
    """
    t = np.trunc(v)
    return t + np.copysign(np.float32(np.abs(v - t) >= np.float32(0.5)), v)

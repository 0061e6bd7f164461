"""ARQ, the scales of weights: symmetric, from the range of each channel or of the tensor."""

from __future__ import annotations

import numpy as np

from kernels.affine import guard_scale
from kernels.checks import check_array, check_bits

__all__ = ["arq"]


def arq(w: np.ndarray, channel_axis: int | None = 0, *, bits: int = 8) -> np.ndarray:
    """Return the scales that cover weights symmetrically, offset 0.

    With m the extreme of larger magnitude, ``scale = m / (2**(bits-1) - 1)`` if m > 0,
    else ``m / -2**(bits-1)``: a negative extreme uses the one level more that negative
    numbers have. A channel that is all (but) zero gets scale 1.

    Parameters
    ----------
    w : float32 array
        E.g. (O, C, kh, kw) with axis 0; deconvolution's (C, O, kh, kw) has axis 1.
    channel_axis : int or None
        The axis with one scale for each index; None: one scale for the tensor.
    bits : int
        2..8.

    Returns
    -------
    float32 array (channels,) or (1,)

    Raises
    ------
    ValueError
        If `w` is empty, holds NaN or infinity (the first such channel is named), or the axis
        is wrong.
    """
    w = check_array("w", w, np.float32, None)
    half = 1 << (check_bits(bits) - 1)
    if not w.size:
        raise ValueError("w is empty: there is no range to take a scale from")
    if channel_axis is not None and not -w.ndim <= channel_axis < w.ndim:
        raise ValueError(f"channel_axis {channel_axis} is not an axis of shape {w.shape}")
    rows = w.reshape(1, -1) if channel_axis is None else _rows(w, channel_axis)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        place = "" if channel_axis is None else f" in channel {bad[0]}"
        raise ValueError(f"the weights hold NaN or infinity{place}")
    low, high = rows.min(axis=1), rows.max(axis=1)
    scales = np.where(high > -low, high / np.float32(half - 1), low / np.float32(-half))
    return np.array([guard_scale(s) for s in scales.astype(np.float32)], np.float32)


def _rows(w: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)

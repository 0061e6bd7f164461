"""The parameters of the number format: scale, offset and width, of a tensor or of its channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.checks import as_array, check_bits, check_integer, check_scales

__all__ = ["ChannelParams", "QuantParams", "check_channels", "format_numbers"]


@dataclass(frozen=True)
class QuantParams:
    """Scale and offset of one tensor.

    Never changes: threads and forked processes may share it.

    Attributes
    ----------
    scale : float
        Real value of one step; a float32 value in (0, inf).
    offset : int
        The integer that stands for zero (zero point), within the bit range.
    bits : int
        Width, 2..8; the range is [-2**(bits-1), 2**(bits-1) - 1].

    Raises
    ------
    TypeError
        If offset or bits is no integer.
    ValueError
        If the scale is not a positive finite float32 or the offset leaves the range.

    Examples
    --------
    >>> from kernels import QuantParams
    >>> params = QuantParams(0.5, -28)
    >>> params.low, params.high
    (-128, 127)
    >>> params.range
    (-50.0, 77.5)
    >>> params.zero_point, params.unsigned_zero_point  # as int8, and as uint8
    (-28, 100)
    """

    scale: float
    offset: int = 0
    bits: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", check_bits(self.bits))
        with np.errstate(over="ignore"):
            scale = float(np.float32(self.scale))
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be a positive finite float32, not {self.scale}")
        object.__setattr__(self, "scale", scale)
        offset = check_integer("offset", self.offset, self.low, self.high)
        object.__setattr__(self, "offset", offset)

    @property
    def low(self) -> int:
        """Smallest integer of the format."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest integer of the format."""
        return (1 << (self.bits - 1)) - 1

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest real value that the format holds."""
        return (self.low - self.offset) * self.scale, (self.high - self.offset) * self.scale

    @property
    def zero_point(self) -> int:
        """The offset, by the name that PyTorch and ONNX have for it."""
        return self.offset

    @property
    def unsigned_zero_point(self) -> int:
        """The zero point of the same format in uint8: ``offset + 2**(bits-1)``."""
        return self.offset - self.low


@dataclass(frozen=True, eq=False)
class ChannelParams:
    """Scale and offset of each channel of a tensor.

    Never changes: threads and forked processes may share it.

    Attributes
    ----------
    scale : float32 array (C,)
        Positive and finite; read-only.
    offset : int32 array (C,)
        Of each channel, within the bit range; read-only. Given as one integer it is that of all.
    bits : int
        Width, 2..8, of all channels.
    axis : int
        The axis of the data that counts channels.

    Raises
    ------
    TypeError
        If offset, bits or axis is no integer.
    ValueError
        If a scale is not positive and finite, an offset leaves the range, or their number differs.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import ChannelParams, quantize
    >>> params = ChannelParams(np.array([0.5, 2.0], np.float32), offset=[0, 10])
    >>> quantize(np.array([[1.0, 4.0], [-1.0, -4.0]], np.float32), params)  # columns are channels
    array([[ 2, 12],
           [-2,  8]], dtype=int8)
    >>> params.channel(1)
    QuantParams(scale=2.0, offset=10, bits=8)
    """

    scale: np.ndarray
    offset: np.ndarray | int = 0
    bits: int = 8
    axis: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", check_bits(self.bits))
        object.__setattr__(self, "axis", check_integer("axis", self.axis, -32, 31))
        scale = check_scales("scale", self.scale).copy()
        given = np.asarray(as_array("offset", self.offset))
        if given.dtype.kind not in "iu":
            raise TypeError(f"offset must be integers, not {given.dtype}")
        if given.shape not in ((), scale.shape):
            raise ValueError(f"offset must be one or {scale.size} integers, not {given.shape}")
        if ((given < self.low) | (given > self.high)).any():
            raise ValueError(f"offset must be in [{self.low}, {self.high}], not {self.offset}")
        offset = np.broadcast_to(given, scale.shape).astype(np.int32)
        for name, array in (("scale", scale), ("offset", offset)):
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def low(self) -> int:
        """Smallest integer of the format."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest integer of the format."""
        return (1 << (self.bits - 1)) - 1

    @property
    def zero_point(self) -> np.ndarray:
        """The offsets, by the name that PyTorch and ONNX have for them."""
        return np.asarray(self.offset)

    @property
    def unsigned_zero_point(self) -> np.ndarray:
        """The zero points of the same format in uint8, int32 (C,)."""
        return self.zero_point - self.low

    def channel(self, index: int) -> QuantParams:
        """Return the parameters of one channel."""
        return QuantParams(float(self.scale[index]), int(self.zero_point[index]), self.bits)


def check_channels(params: QuantParams | ChannelParams, x: np.ndarray) -> None:
    """Raise `ValueError` unless there are parameters for each channel of an array."""
    if isinstance(params, ChannelParams):
        axis, count, shape = params.axis, params.scale.size, tuple(x.shape)
        if not -len(shape) <= axis < len(shape) or shape[axis] != count:
            raise ValueError(f"{count} scales do not fit axis {axis} of shape {shape}")


def format_numbers(params: QuantParams | ChannelParams, dtype: type) -> tuple[Any, Any, Any, Any]:
    """Return scale, offset, least and greatest integer of a format held in int8 or uint8.

    Parameters
    ----------
    params : QuantParams or ChannelParams
    dtype : type
        uint8: all integers are greater by ``2**(bits-1)``.

    Returns
    -------
    scale, offset : float32, or float32 array (C,)
    low, high : float32
    """
    less = params.low if dtype is np.uint8 else 0
    offset = params.offset - less
    return (
        np.float32(params.scale),
        np.float32(offset),
        np.float32(params.low - less),
        np.float32(params.high - less),
    )

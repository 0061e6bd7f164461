"""The output stage: what becomes of an int32 sum on its way to memory.

``v = float32(sum)``; where ``shift[c] > 0``, the accelerator's 16-bit step
``v = clip_s16(round(v / 2**shift)) * 2**shift``; then ``y = clamp(v * scale[c])``, and with
`params` ``q = quantize(y)``. Every step is one float32 operation, so devices agree exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np

from kernels.checks import (
    Array,
    as_array,
    check_integer,
    check_kind,
    check_place,
    int32_room,
    is_device_array,
)
from kernels.dispatch import Device, backend
from kernels.params import QuantParams

__all__ = [
    "FLOATS",
    "QUANTIZED",
    "SUMS",
    "CheckedStage",
    "OutputStage",
    "check_bias",
    "check_output",
    "check_room",
    "float_stage",
]


@dataclass(frozen=True)
class OutputStage:
    """How a layer's int32 sums are stored.

    Never changes: threads and forked processes may share it.

    Attributes
    ----------
    scale : float32 array (C,) or (1,), or float
        Real value of one unit of the sum: scale_x * scale_w[c].
    shift : int array (C,) or (1,), optional
        The accelerator's shift N, 0 (none) or 1..16.
    clamp : (float, float)
        Lowest and highest real value kept: (0, inf) is ReLU, (0, 6) is ReLU6.
    params : QuantParams, optional
        Requantize to int8; without it the values are stored as float32.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import OutputStage, QuantParams, inner_product_int8
    >>> x, w = np.array([[3]], np.int8), np.array([[10], [-10], [20]], np.int8)
    >>> relu6 = OutputStage(0.125, clamp=(0, 6), params=QuantParams(0.0625, -128))
    >>> inner_product_int8(x, w, output=relu6)  # 3.75, 0 and 6 in steps of 1/16, less 128
    array([[ -68, -128,  -32]], dtype=int8)
    """

    scale: np.ndarray | float
    shift: np.ndarray | None = None
    clamp: tuple[float, float] = (-inf, inf)
    params: QuantParams | None = None


#: What an output stage stores: int32 sums as they are, float32 values, int8 values.
SUMS, FLOATS, QUANTIZED = range(3)


@dataclass(frozen=True)
class CheckedStage:
    """An `OutputStage` with its arrays expanded to one entry a channel, for backends."""

    kind: int  # `SUMS`, `FLOATS` or `QUANTIZED`
    scale: np.ndarray
    power: np.ndarray  # 2**shift, 0 where there is no shift
    low: np.float32
    high: np.float32
    q_scale: np.float32
    q_offset: np.float32
    q_low: np.float32
    q_high: np.float32

    @property
    def dtype(self) -> np.dtype:
        """The dtype of what is stored."""
        return np.dtype(("int32", "float32", "int8")[self.kind])


def check_bias(
    bias: Array | None, channels: int, dtype: type, device: Device | str = "cpu"
) -> np.ndarray:
    """Return the bias as an array (channels,) of `dtype`: zeros for None.

    Raises
    ------
    TypeError, ValueError
        If its dtype or shape is another, or it lies where `device` does not take it from.
    """
    if bias is None:
        return np.zeros(channels, dtype)
    bias = check_kind("bias", bias, dtype, None)
    check_place("bias", bias, device)
    if tuple(bias.shape) != (channels,):
        raise ValueError(
            f"bias must be {np.dtype(dtype).name} of shape ({channels},), "
            f"not {bias.dtype} {tuple(bias.shape)}"
        )
    return np.ascontiguousarray(bias) if isinstance(bias, np.ndarray) else bias


def check_room(
    w: np.ndarray,
    bias: np.ndarray,
    device: str,
    by_output: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> None:
    """Raise unless every sum fits in int32, see `kernels.checks.int32_room`.

    Weights that lie on the device are fetched only where the largest there could be would not
    do; the bias always is.

    Parameters
    ----------
    w : int8 array
    bias : int32 array (O,)
    device : str
    by_output : callable
        Moves the outputs of the weights, a NumPy array, to the first axis.

    Raises
    ------
    OverflowError
        Naming the first channel whose sum could leave int32.
    """
    if is_device_array(bias):
        bias = backend(device, "arrays").on_host(bias)
    if is_device_array(w):
        try:
            int32_room(by_output(np.broadcast_to(np.int8(-128), tuple(w.shape))), bias, 0)
            return
        except OverflowError:
            w = backend(device, "arrays").on_host(w)
    int32_room(by_output(w), bias, channel_axis=0)


def _per_channel(name: str, values: object, channels: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = np.atleast_1d(np.asarray(as_array(f"output.{name}", values), dtype=np.float32))
    if array.shape not in ((1,), (channels,)):
        raise ValueError(f"output.{name} must have 1 or {channels} entries, not {array.shape}")
    return np.ascontiguousarray(np.broadcast_to(array, (channels,)))


def check_output(output: OutputStage | None, channels: int, x_offset: int) -> CheckedStage:
    """Validate an output stage for a layer of so many channels, and the data's offset.

    Parameters
    ----------
    output : OutputStage or None
        None: sums are stored as they are.
    channels : int
    x_offset : int
        Of the data, -128..127.

    Returns
    -------
    CheckedStage
        With one entry a channel.

    Raises
    ------
    TypeError, ValueError
        If a length, a range or the offset is wrong.
    """
    check_integer("x_offset", x_offset, -128, 127)
    one, zero = np.float32(1), np.float32(0)
    if output is None:
        ones = np.ones(channels, np.float32)
        return CheckedStage(SUMS, ones, ones * 0, zero, zero, one, zero, zero, zero)
    scale = _per_channel("scale", output.scale, channels)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError("output.scale must be positive and finite")
    shift = _per_channel("shift", 0 if output.shift is None else output.shift, channels)
    if not ((shift >= 0) & (shift <= 16) & (shift == np.rint(shift))).all():
        raise ValueError("output.shift must be an integer in 0..16")
    power = np.where(shift > 0, np.exp2(shift), 0).astype(np.float32)
    with np.errstate(over="ignore"):
        low, high = np.float32(output.clamp[0]), np.float32(output.clamp[1])
    if not low <= high:
        raise ValueError(f"output.clamp must be (low, high), not {output.clamp}")
    p = output.params
    if p is None:
        return CheckedStage(FLOATS, scale, power, low, high, one, zero, zero, zero)
    return CheckedStage(
        QUANTIZED,
        scale,
        power,
        low,
        high,
        np.float32(p.scale),
        np.float32(p.offset),
        np.float32(p.low),
        np.float32(p.high),
    )


def float_stage(
    channels: int,
    clamp: tuple[float, float] = (-inf, inf),
    params: QuantParams | None = None,
) -> CheckedStage:
    """Return the output stage of float32 sums: nothing is scaled.

    Parameters
    ----------
    channels : int
    clamp : (float, float)
        Lowest and highest value kept.
    params : QuantParams, optional
        Quantize to int8.

    Returns
    -------
    CheckedStage

    Raises
    ------
    ValueError
        If the clamp is empty.
    """
    return check_output(OutputStage(1.0, clamp=clamp, params=params), channels, 0)

"""Checks that operations share: they run once, where a public function is entered."""

from __future__ import annotations

import operator

import numpy as np

__all__ = [
    "abs_sums",
    "check_array",
    "check_bits",
    "check_integer",
    "check_kind",
    "check_not_empty",
    "check_pair",
    "check_place",
    "int32_room",
    "is_device_array",
]


def is_device_array(array: object) -> bool:
    """Whether an array lies on a CUDA device."""
    return hasattr(array, "__cuda_array_interface__") or hasattr(array, "__cuda_ndarray__")


def _dtype(array: np.ndarray) -> np.dtype:
    """Return an array's dtype as NumPy's: torch has its own."""
    own = array.dtype
    return own if isinstance(own, np.dtype) else np.dtype(array.__cuda_array_interface__["typestr"])


def check_kind(name: str, array: np.ndarray, dtype: type | None, ndim: int | None) -> None:
    """Raise unless `array` is an array of that dtype and rank.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    array : ndarray
    dtype : type or None
        The dtype demanded; None takes any.
    ndim : int or None
        The rank demanded; None takes any.

    Raises
    ------
    TypeError
        If it is no array or has another dtype.
    ValueError
        If it has another rank.
    """
    if not isinstance(array, np.ndarray) and not is_device_array(array):
        raise TypeError(f"{name} must be a NumPy array, not {type(array).__name__}")
    if dtype is not None and _dtype(array) != dtype:
        raise TypeError(f"{name} must be {np.dtype(dtype).name}, not {array.dtype}")
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, not shape {array.shape}")


def check_array(
    name: str, array: np.ndarray, dtype: type | None, ndim: int | None, device: str | None = None
) -> np.ndarray:
    """Return `array` C-contiguous, having checked it as `check_kind` does.

    Device arrays are returned as they are: the backend that takes them looks at their order.
    Where the device that is to work on the array is given, `check_place` is asked too.
    """
    check_kind(name, array, dtype, ndim)
    if device is not None:
        check_place(name, array, device)
    if not isinstance(array, np.ndarray):
        return array
    ordered = np.require(array, requirements=("C_CONTIGUOUS", "ALIGNED"))
    return np.asarray(ordered).reshape(array.shape)


def check_place(name: str, array: np.ndarray, device: str) -> None:
    """Raise `TypeError` if an array lies on a CUDA device and another is to work on it."""
    if device != "cuda" and is_device_array(array):
        raise TypeError(f"{name} lies on a CUDA device, but device '{device}' takes NumPy arrays")


def check_pair(name: str, pair: int | tuple[int, int], least: int) -> tuple[int, int]:
    """Return ``(vertical, horizontal)`` from one or two integers of at least `least`."""
    try:
        both = pair if isinstance(pair, tuple | list) else (pair, pair)
        v, h = (operator.index(p) for p in both)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be one integer or two, not {pair!r}") from None
    if v < least or h < least:
        raise ValueError(f"{name} must be integers >= {least}, not {pair}")
    return v, h


def check_integer(name: str, value: int, low: int, high: int | None = None) -> int:
    """Return an integer of at least `low` and at most `high`.

    Raises
    ------
    TypeError
        If it is no integer: a fraction is refused, not cut off.
    ValueError
        If it is out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None
    if number < low or (high is not None and number > high):
        allowed = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be {allowed}, not {number}")
    return number


def check_bits(bits: int) -> int:
    """Return the bit width if it is one of 2..8."""
    return check_integer("bits", bits, 2, 8)


def check_not_empty(name: str, array: np.ndarray, first_axis: int = 0) -> None:
    """Raise if an axis has length 0, from `first_axis` on: a batch may be empty.

    Raises
    ------
    ValueError
        Naming the argument and its shape.
    """
    if 0 in array.shape[first_axis:]:
        raise ValueError(f"{name} is empty: its shape is {array.shape}")


def abs_sums(w: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the sums of magnitudes over some axes, int64, with no wider copy of int8 weights."""
    positive = np.maximum(w, 0).sum(axis=axes, dtype=np.int64)
    return positive - np.minimum(w, 0).sum(axis=axes, dtype=np.int64)


def int32_room(w: np.ndarray, bias: np.ndarray | None, channel_axis: int) -> None:
    """Raise unless every sum of this layer fits in int32, whatever the data.

    The largest magnitude of ``x - offset`` is 255, so |sum| <= 255 * sum|w| + |bias|.

    Parameters
    ----------
    w : int8 array
    bias : int32 array or None
    channel_axis : int
        The axis of `w` that holds the output channels.

    Raises
    ------
    OverflowError
        Naming the first channel whose sum could leave int32.
    """
    axes = tuple(a for a in range(w.ndim) if a != channel_axis % w.ndim)
    depth = w.size // max(w.shape[channel_axis], 1)
    largest = 0 if bias is None or not bias.size else max(-int(bias.min()), int(bias.max()))
    if 255 * 128 * depth + largest <= np.iinfo(np.int32).max:
        return  # whatever the weights are: most layers need no closer look
    bound = 255 * abs_sums(w, axes)
    if bias is not None:
        bound = bound + np.abs(bias.astype(np.int64)).reshape(-1)[: bound.size]
    if bound.size and bound.max() > np.iinfo(np.int32).max:
        channel = int(np.argmax(bound))
        raise OverflowError(
            f"output channel {channel} could sum up to {int(bound[channel])}, beyond int32; "
            "keep this layer in float"
        )

"""Checks that operations share: they run once, where a public function is entered."""

from __future__ import annotations

import operator
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

__all__ = [
    "ANY_PRODUCTS",
    "Array",
    "abs_sums",
    "as_array",
    "check_array",
    "check_bits",
    "check_integer",
    "check_integer_dtype",
    "check_kind",
    "check_not_empty",
    "check_out",
    "check_pair",
    "check_place",
    "check_scales",
    "int32_room",
    "is_device_array",
]


_INT32_MAX = int(np.iinfo(np.int32).max)
#: The largest magnitude of ``(x - offset) * w``.
_MOST_PRODUCT = 255 * 128
#: So many products, whatever data and weights are, fit in an int32 sum without a bias.
ANY_PRODUCTS = _INT32_MAX // _MOST_PRODUCT


class SupportsArray(Protocol):
    """An array of another library that NumPy can read, e.g. a tensor of torch."""

    def __array__(self) -> Any:
        """Return it as NumPy's."""
        ...  # pragma: no cover


class SupportsDlpack(Protocol):
    """An array that can be exchanged by DLPack."""

    def __dlpack__(self) -> Any:
        """Return its capsule."""
        ...  # pragma: no cover


#: What public functions take where their documentation says array.
Array = np.ndarray | SupportsArray | SupportsDlpack


def is_device_array(array: object) -> bool:
    """Whether an array lies on a CUDA device."""
    return hasattr(array, "__cuda_array_interface__") or hasattr(array, "__cuda_ndarray__")


def as_array(name: str, x: Any, dtype: type | None = None) -> Any:
    """Return an array of another library (torch, JAX ...) as NumPy's; anything else as it is.

    Whatever has ``__array__`` or, on the CPU, ``__dlpack__`` is taken. Memory is shared where
    that library allows it: a tensor of torch always is. Arrays of a CUDA device are not moved.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    x : object
    dtype : type, optional
        What is wanted, for the message.

    Raises
    ------
    TypeError
        If a gradient is to flow through it, or NumPy has no form for it.
    """
    if isinstance(x, np.ndarray):
        return x
    if getattr(x, "requires_grad", False) is True:
        raise TypeError(f"{name} requires a gradient, and none is computed: pass {name}.detach()")
    if is_device_array(x) or isinstance(x, np.generic):
        return x
    try:
        # DLPack comes second: torch hands out tensors with a pending sign as if they had none
        if hasattr(x, "__array__"):
            return np.asarray(x)
        return np.from_dlpack(x) if hasattr(x, "__dlpack__") else x
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        own = str(getattr(x, "dtype", ""))
        if dtype is None or own.rpartition(".")[2] == np.dtype(dtype).name:
            raise TypeError(f"{name} cannot be read as a NumPy array: {error}") from None
        raise _wrong_dtype(name, x, dtype) from None


def _dtype(array: np.ndarray) -> np.dtype:
    """Return an array's dtype as NumPy's: torch has its own."""
    own = array.dtype
    return own if isinstance(own, np.dtype) else np.dtype(array.__cuda_array_interface__["typestr"])


def _wrong_dtype(name: str, x: Any, dtype: type) -> TypeError:
    """Return the error for an array of another dtype; of floats it names the conversion."""
    wanted, own = np.dtype(dtype).name, str(x.dtype)
    text = f"{name} must be {wanted}, not {own}"
    if wanted == "float32" and ("float" in own or own.startswith(">f")):
        call = "float()" if hasattr(x, "float") else "astype(np.float32)"
        text += f": convert it with {name}.{call}"
    return TypeError(text)


def check_kind(name: str, array: Any, dtype: type | None, ndim: int | None) -> np.ndarray:
    """Return an array as `as_array` does, or raise unless it is one of that dtype and rank.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    array : ndarray, array of a CUDA device or of another library
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
    given, array = array, as_array(name, array, dtype)
    if not isinstance(array, np.ndarray) and not is_device_array(array):
        raise TypeError(f"{name} must be a NumPy array, not {type(array).__name__}")
    if dtype is not None and _dtype(array) != dtype:
        raise _wrong_dtype(name, given, dtype)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, not shape {array.shape}")
    return array


def check_array(
    name: str, array: Any, dtype: type | None, ndim: int | None, device: str | None = None
) -> np.ndarray:
    """Return `array` C-contiguous, having checked it as `check_kind` does.

    Device arrays are returned as they are: the backend that takes them looks at their order.
    Where the device that is to work on the array is given, `check_place` is asked too.
    """
    array = check_kind(name, array, dtype, ndim)
    if device is not None:
        check_place(name, array, device)
    if not isinstance(array, np.ndarray):
        return array
    ordered = np.require(array, requirements=("C_CONTIGUOUS", "ALIGNED"))
    return np.asarray(ordered).reshape(array.shape)


def check_place(name: str, array: object, device: str) -> None:
    """Raise `TypeError` if an array lies on a CUDA device and another is to work on it."""
    if device != "cuda" and is_device_array(array):
        raise TypeError(f"{name} lies on a CUDA device, but device '{device}' takes NumPy arrays")


def check_scales(name: str, values: Array | float) -> np.ndarray:
    """Return scales as a float32 array of one axis, having checked that they can be used."""
    with np.errstate(over="ignore"):
        scales = np.atleast_1d(np.asarray(as_array(name, values), dtype=np.float32))
    if scales.ndim != 1 or not (np.isfinite(scales).all() and (scales > 0).all()):
        raise ValueError(f"{name} must be positive and finite, one value or one a channel")
    return scales


def check_integer_dtype(dtype: DTypeLike) -> type:
    """Return int8 or uint8 as NumPy's type; raise `TypeError` for any other."""
    if dtype is np.int8 or dtype is np.uint8:  # as most callers write it
        return dtype
    for known in (np.int8, np.uint8):
        if np.dtype(known) == dtype:
            return known
    raise TypeError(f"dtype must be np.int8 or np.uint8, not {dtype}")


def check_out(out: Any, x: np.ndarray, dtype: type) -> Any:
    """Return the array that a caller gives for a result, or None if there is none.

    Of arrays on a CUDA device it is not known whether they overlap.

    Parameters
    ----------
    out : ndarray, array of a CUDA device or of another library, or None
    x : ndarray or array of a CUDA device
        The checked input; the result has its shape and lies where it lies.
    dtype : type
        Of the result.

    Raises
    ------
    TypeError
        If `out` is no array, has another dtype, or another library would only give a copy of it.
    ValueError
        If its shape or place differs, it is not C-contiguous or is read-only, or it overlaps `x`
        without being the same values.
    """
    if out is None:
        return None
    array = check_kind("out", out, dtype, None)
    if tuple(array.shape) != tuple(x.shape):
        raise ValueError(f"out must have the shape {tuple(x.shape)}, not {tuple(array.shape)}")
    if is_device_array(array) or is_device_array(x):
        if not (is_device_array(array) and is_device_array(x)):
            raise ValueError("out must lie where the input lies: on the CUDA device, or not")
        return array
    # of a copy each reading has memory of its own
    if array is not out and array.size and not np.may_share_memory(array, as_array("out", out)):
        raise TypeError(f"out is a {type(out).__name__} that NumPy can only copy")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError("out must be C-contiguous")
    if not array.flags.writeable:
        raise ValueError("out is read-only")
    same = array.dtype == x.dtype and array.ctypes.data == x.ctypes.data
    if not same and np.may_share_memory(array, x):
        raise ValueError("out overlaps the input; it may only be the same array")
    return array


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
    """Raise unless every sum of an INT8 layer fits in int32, whatever the data.

    The largest magnitude of ``x - offset`` is 255, so |sum| <= 255 * sum|w| + |bias|. Every INT8
    operation asks this; ask it where weights are made, to refuse them before they are used.

    Parameters
    ----------
    w : int8 array
    bias : int32 array or None
    channel_axis : int
        The axis of `w` that holds the output channels.

    Raises
    ------
    OverflowError
        Naming the channel whose sum could leave int32 by most, its products, and how many of them
        always fit.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import ANY_PRODUCTS, int32_room
    >>> ANY_PRODUCTS
    65793
    >>> int32_room(np.full((1, 65793), -128, np.int8), None, 0)  # one more would raise
    """
    axes = tuple(a for a in range(w.ndim) if a != channel_axis % w.ndim)
    depth = w.size // max(w.shape[channel_axis], 1)
    largest = 0 if bias is None or not bias.size else max(-int(bias.min()), int(bias.max()))
    if _MOST_PRODUCT * depth + largest <= _INT32_MAX:
        return  # whatever the weights are: most layers need no closer look
    bound = 255 * abs_sums(w, axes)
    if bias is not None:
        bound = bound + np.abs(bias.astype(np.int64)).reshape(-1)[: bound.size]
    if bound.size and bound.max() > _INT32_MAX:
        channel = int(np.argmax(bound))
        raise OverflowError(
            f"output channel {channel} could sum up to {int(bound[channel])} over {depth} "
            f"products, beyond int32, which has room for any {ANY_PRODUCTS}; keep this layer in "
            "float"
        )

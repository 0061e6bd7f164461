"""Arrays on their way to the device and back.

An operation takes arrays of NumPy or of the device (anything with
``__cuda_array_interface__``: numba's, torch's, CuPy's), and returns its results where its first
argument was. Device arrays are not copied.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.jit import SIMULATED, cuda

__all__ = [
    "empty",
    "flat",
    "is_on_device",
    "like",
    "on_device",
    "on_host",
    "shaped",
    "zeros",
]


def is_on_device(x: Any) -> bool:
    """Whether an array lies on a device."""
    return not isinstance(x, np.ndarray)


def on_device(x: Any) -> Any:
    """Return an array as a device array in C order; a NumPy array is copied.

    Raises
    ------
    ValueError
        If a device array is not in C order.
    """
    if isinstance(x, np.ndarray):
        return cuda.to_device(np.ascontiguousarray(x))
    view = x if SIMULATED else cuda.as_cuda_array(x)
    if not view.is_c_contiguous():
        raise ValueError(f"a device array of shape {x.shape} is not in C order; copy it first")
    return view


def flat(x: Any) -> Any:
    """Return an array as a device array of one axis, see `on_device`."""
    device_x = on_device(x)
    return device_x.reshape(device_x.size) if device_x.size and device_x.ndim != 1 else device_x


def on_host(x: Any) -> np.ndarray:
    """Return an array as NumPy's."""
    return x if isinstance(x, np.ndarray) else on_device(x).copy_to_host()


def empty(shape: int | tuple[int, ...], dtype: Any) -> Any:
    """Return a new device array; its values mean nothing."""
    return cuda.device_array(shape, dtype)


def zeros(shape: int | tuple[int, ...], dtype: Any) -> Any:
    """Return a new device array of zeros."""
    return cuda.to_device(np.zeros(shape, dtype))


def like(result: Any, argument: Any) -> Any:
    """Return a device array where `argument` lies: on the device, or as NumPy's."""
    return result if is_on_device(argument) else result.copy_to_host()


def shaped(result: Any, argument: Any) -> Any:
    """Return a device array of one axis in the shape of `argument`, where that lies."""
    shape = tuple(argument.shape)
    if not result.size:
        return like(empty(shape, result.dtype), argument)
    if is_on_device(argument):
        return result.reshape(shape)
    return result.copy_to_host().reshape(shape)

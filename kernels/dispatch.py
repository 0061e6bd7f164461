"""The one place that knows which devices there are and where their code lies."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Literal, get_args

__all__ = [
    "DEVICES",
    "Device",
    "DeviceError",
    "backend",
    "best_device",
    "check_device",
    "device_count",
    "select_device",
]

#: How a caller can name a device. ``reference`` defines the results; the others must equal it.
Device = Literal["reference", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = get_args(Device)


class DeviceError(RuntimeError):
    """A device that this process cannot compute on; the message says what would do."""


def check_device(device: str) -> None:
    """Raise `ValueError` if there is no such device."""
    if device not in DEVICES:
        raise ValueError(f"device '{device}' is unknown; choose one of {', '.join(DEVICES)}")


def backend(device: str, operation: str) -> ModuleType:
    """Return the module that computes `operation` on `device`.

    Parameters
    ----------
    device : {"reference", "cpu", "cuda"}
        NumPy definition, numba on all cores, or numba on a CUDA device.
    operation : str
        Name of the operation's file, the same under every device.

    Raises
    ------
    ValueError
        If there is no such device.
    DeviceError
        If this process cannot compute on it.
    ImportError
        If a library that it needs is missing.
    """
    check_device(device)
    return importlib.import_module(f"kernels.{device}.{operation}")


def best_device() -> tuple[Device, str]:
    """Return the fastest device of this machine, and its name for people.

    Returns
    -------
    device, name : str
        ``"cuda"`` where numba-cuda is installed and finds a device, else ``"cpu"``.
    """
    if importlib.util.find_spec("numba_cuda") is not None:
        name = backend("cuda", "jit").device_name()
        if name:
            return "cuda", name
    return "cpu", "the processor"


def device_count(device: Device | str) -> int:
    """Return how many devices of a kind there are; all processors of the host are one.

    Parameters
    ----------
    device : str

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If there is no such device.
    """
    check_device(device)
    return backend(device, "jit").device_count() if device == "cuda" else 1


def select_device(device: Device | str, number: int) -> None:
    """Let this thread compute on one of several devices of a kind.

    Parameters
    ----------
    device : str
    number : int
        From 0 to `device_count` - 1.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    if device_count(device) > 1:
        backend(device, "jit").select_device(number)

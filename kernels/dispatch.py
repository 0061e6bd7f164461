"""The one place that knows which devices there are and where their code lies."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import Literal, get_args

__all__ = [
    "DEVICES",
    "Device",
    "DeviceError",
    "backend",
    "best_device",
    "check_device",
    "check_usable",
    "device_count",
    "select_device",
]

#: How a caller can name a device. ``reference`` defines the results; the others must equal it.
Device = Literal["reference", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = get_args(Device)


#: Devices that this process has lost, because it was forked from one that used them.
_LOST: set[Device] = set()


class DeviceError(RuntimeError):
    """A device that this process cannot compute on; the message says what would do.

    Raised to every thread of a forked child that must be spawned, and where a compiler is off.
    """


def check_device(device: str) -> None:
    """Raise `ValueError` if there is no such device."""
    if device not in DEVICES:
        raise ValueError(f"device '{device}' is unknown; choose one of {', '.join(DEVICES)}")


def check_usable(device: Device | str) -> None:
    """Raise `DeviceError` if the process was forked from one that had used the device."""
    if device in _LOST:
        raise DeviceError(
            f"device '{device}' was in use when this process was forked, and a child cannot go on "
            "with it: start processes by 'spawn', as multiprocessing.get_context('spawn') does"
        )


def _note_lost() -> None:
    """Note, in a child, the devices whose threads or contexts have stayed in the parent."""
    for device in DEVICES:
        code = sys.modules.get(f"kernels.{device}.jit")
        if code is not None and not getattr(code, "survives_fork", bool)():  # half imported: lost
            _LOST.add(device)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_note_lost)


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
    check_usable(device)
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

"""The one place that knows which devices there are and where their code lies."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["DEVICES", "backend", "check_device"]

#: Devices a caller can name. ``reference`` defines the results; the others must equal it.
DEVICES = ("reference", "cpu")


def check_device(device: str) -> None:
    """Raise `ValueError` if there is no such device."""
    if device not in DEVICES:
        raise ValueError(f"device '{device}' is unknown; choose one of {', '.join(DEVICES)}")


def backend(device: str, operation: str) -> ModuleType:
    """Return the module that computes `operation` on `device`.

    Parameters
    ----------
    device : {"reference", "cpu"}
        NumPy definition, or numba on all cores.
    operation : str
        Name of the operation's file, the same under every device.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    check_device(device)
    return importlib.import_module(f"kernels.{device}.{operation}")

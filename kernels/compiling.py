"""When kernels are compiled: at their first use, unless the cache on disk has them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from kernels.dispatch import Device, backend, check_device

__all__ = ["on_compile"]


def on_compile(
    device: Device | str, callback: Callable[[str, int, float], None]
) -> AbstractContextManager[None]:
    """Call back before and behind each kernel that is compiled; not for those from the cache.

    Parameters
    ----------
    device : str
        The reference compiles nothing.
    callback : callable
        ``callback(kernel, count, seconds)``: the kernel that is compiled now, "" behind it; its
        number in this context; the seconds that all before it took.

    Returns
    -------
    context manager

    Raises
    ------
    ValueError
        If there is no such device.
    """
    check_device(device)
    return nullcontext() if device == "reference" else backend(device, "jit").on_compile(callback)

"""When kernels are compiled: at their first use, unless the cache on disk has them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from kernels.dispatch import Device, backend, check_device

__all__ = ["CacheWarning", "cache_problem", "on_compile"]


class CacheWarning(UserWarning):
    """Compiled kernels could not be kept on disk; it is said once in a process.

    Threads: whichever compiles first says it.

    Everything works: only the next process compiles them again.
    """


def cache_problem(device: Device | str) -> str:
    """Return why kernels compiled so far will have to be compiled again by the next process.

    Parameters
    ----------
    device : str
        Only those of the CPU are kept on disk.

    Returns
    -------
    str
        Empty if nothing was compiled, or all of it is kept.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    check_device(device)
    return str(backend(device, "jit").cache_problem()) if device == "cpu" else ""


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

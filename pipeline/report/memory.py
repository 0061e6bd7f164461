"""The memory that a run needs, as an estimate, and what the machine has."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pipeline.report.cost import NetCost

__all__ = ["machine_memory", "needed_memory"]

#: Python, its libraries and compiled kernels.
_PROGRAM = 250 << 20
#: The net as read, packed, rounded and written: copies of the weights alive at once (VGG-16: 3.4).
_WEIGHTS = 3.5
#: Blobs alive at once: a pass's own, what observing and comparing holds beside it.
_BLOBS = 2
#: What evaluation holds: decoded samples, outputs of the float net, outputs of layers.
_EVALUATION = 3 * (64 << 20)
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory() -> int | None:
    """Return the bytes that this process may use at most; None where it cannot be told."""
    sizes = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on every system
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in _LIMITS:  # of a container, which sees the memory of the whole machine
        try:
            sizes.append(int(Path(name).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(sizes, default=None)


def needed_memory(cost: NetCost, batch_size: int, improve: int) -> int:
    """Estimate the bytes that a run needs at its peak.

    Parameters
    ----------
    cost : NetCost
    batch_size : int
        The larger of calibration's and evaluation's.
    improve : int
        Bytes of values that improvements hold; 0 without any.
    """
    weights = 4 * sum(layer.weights for layer in cost.layers)
    blobs = 4 * cost.peak_values * batch_size
    held = max(improve, _EVALUATION)
    return round(_PROGRAM + _WEIGHTS * weights + _BLOBS * blobs + held)

"""What memory there is, and the refusal of what cannot fit in it before any is taken."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["gibibytes", "machine_memory", "no_room"]

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
#: What every machine has; the limits are not read for it.
_SMALL = 1 << 26


def machine_memory() -> int | None:
    """Return the bytes that this process may use at most; None where it cannot be told."""
    sizes = []
    with suppress(AttributeError, ValueError, OSError):  # not on every system
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in _LIMITS:  # of a container, which sees the memory of the whole machine
        try:
            sizes.append(int(Path(name).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(sizes, default=None)


def no_room(size: int) -> str:
    """Return why so many bytes cannot be had; an empty text if this machine has them.

    Parameters
    ----------
    size : int
        However large.
    """
    if size < _SMALL:
        return ""
    limit = machine_memory()
    if limit is None or size <= limit:
        return ""
    return f"{size:,} bytes ({gibibytes(size)}); this machine has {gibibytes(limit)}"


def gibibytes(size: int) -> str:
    """Return a number of bytes, of any size, as text.

    Examples
    --------
    >>> gibibytes(3 << 29)
    '1.5 GiB'
    """
    tenths = (size * 10 + (1 << 29)) >> 30
    return f"{tenths // 10:,}.{tenths % 10} GiB"

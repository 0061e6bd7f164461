"""What the machine allows at most, and what others take of it, measured in the same run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

__all__ = ["foreign_cores", "limits"]

#: As many as the workloads read: where the cache holds these, it holds those too.
_BYTES = 1 << 24
_SIZE = 1024


def _best(run: Callable[[], object]) -> float:
    times: list[float] = []
    for _ in range(25):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def _read(threads: int) -> float:
    """Read with ``np.max``, NumPy's fastest reader: ``np.sum`` is held up by its additions."""
    parts = np.array_split(np.ones(_BYTES // 4, np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return _BYTES / _best(lambda: list(pool.map(np.max, parts)))


def _product(threads: int) -> float:
    """Multiply in BLAS, which comes near the peak of the multiply-add units."""
    a = np.random.default_rng(4).standard_normal((_SIZE, _SIZE), dtype=np.float32)
    with threadpool_limits(threads, user_api="blas"):
        return 2 * _SIZE**3 / _best(lambda: a @ a)


def _int8(threads: int, product: float) -> float:
    """Return the measured rate of the instruction that our kernels use, else a bound from above.

    That is four times a float32 product: one instruction multiplies and adds 16 float32 or,
    with VNNI, 64 int8 values.
    """
    try:
        from bench.peak import peak
    except ImportError:
        return 4 * product
    return threads * peak("int8")


def limits(threads: int) -> Mapping[str, float]:
    """Return bytes or operations a second, by the `bound` of a workload."""
    product = _product(threads)
    return {"read": _read(threads), "float": product, "int8": _int8(threads, product)}


def foreign_cores(seconds: float = 0.1) -> float:
    """Return how many cores are in use while all sides rest; 0 where Linux does not say."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return 0.0

    def snapshot() -> tuple[int, int]:
        times = [int(n) for n in stat.read_text().split("\n", 1)[0].split()[1:9]]
        return sum(times), times[3] + times[4]  # all, and idle or waiting for a disk

    time.sleep(0.02)  # threads of the last turn stop spinning
    total, idle = snapshot()
    time.sleep(seconds)
    total_after, idle_after = snapshot()
    spent = total_after - total
    return (os.cpu_count() or 1) * (1 - (idle_after - idle) / spent) if spent else 0.0

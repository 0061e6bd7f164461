"""Float products on all cores: NumPy's BLAS on one thread each, the work spread here.

BLAS and numba keep threads of their own, which spin while they wait for work and so take
the cores from each other. Therefore this backend limits BLAS to one thread, for the whole
process, when it is first used, and spreads tiles over Python threads, which is possible as
BLAS and compiled kernels release the interpreter's lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numba
from threadpoolctl import threadpool_limits

__all__ = ["spread"]

threadpool_limits(limits=1, user_api="blas")


@lru_cache(maxsize=4)
def _pool(process: int, workers: int) -> ThreadPoolExecutor:
    """Return the helpers of this process: a forked child has none of its parent's threads."""
    return ThreadPoolExecutor(workers, thread_name_prefix="kernels")


def spread(jobs: Sequence[Callable[[], None]]) -> None:
    """Run the jobs on all cores, the calling thread among them; any order, all of them."""
    workers = min(numba.get_num_threads(), len(jobs)) - 1
    if workers < 1:
        for job in jobs:
            job()
        return
    waiting = iter(jobs)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                job = next(waiting, None)
            if job is None:
                return
            job()

    helpers = [_pool(os.getpid(), workers).submit(work) for _ in range(workers)]
    try:
        work()
    finally:
        for helper in helpers:
            helper.result()

"""The table of all workloads."""

from __future__ import annotations

from bench import convs, nets, observing
from bench.workload import Workload

__all__ = ["workloads"]


def workloads(batch: int = 1) -> tuple[Workload, ...]:
    """Return all workloads; nets and layers are run on `batch` images at a time."""
    return (*observing.workloads(), *convs.workloads(batch), *nets.workloads(batch))

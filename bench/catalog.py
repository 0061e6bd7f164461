"""The table of all workloads."""

from __future__ import annotations

from bench import convs, int8_convs, int8_nets, nets, observing, training
from bench.workload import Workload

__all__ = ["workloads"]


def workloads(batch: int = 1) -> tuple[Workload, ...]:
    """Return all workloads; nets and layers are run on `batch` images at a time."""
    return (
        *observing.workloads(),
        *int8_convs.workloads(batch),
        *convs.workloads(batch),
        *nets.workloads(batch),
        *int8_nets.workloads(batch),
        *training.workloads(),
    )

"""Every side of the short list of workloads under pytest-benchmark, one group a workload.

On one thread. For ratios on more, and on a busy machine, see ``python -m bench``, where each
peer has a process of its own and the sides take turns.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.catalog import workloads
from bench.workload import Ready, Workload, prepare

_SIDES = [(w, s.name) for w in workloads() if w.short for s in w.sides]


@pytest.fixture(scope="module")
def ready(request: pytest.FixtureRequest) -> Ready:
    """Set a workload up once for all its sides; equal numbers are checked here."""
    workload: Workload = request.param
    if reason := workload.missing():
        pytest.skip(reason)
    return prepare(workload, request.config.getoption("--bench-threads"))


@pytest.mark.parametrize(
    ("ready", "workload", "side"),
    [pytest.param(w, w, side, id=f"{w.title}-{side}") for w, side in _SIDES],
    indirect=["ready"],
)
def test_speed(ready: Ready, workload: Workload, side: str, benchmark: BenchmarkFixture) -> None:
    if reason := ready.skipped.get(side):
        pytest.skip(reason)
    benchmark.group = workload.title
    benchmark(ready.runs[side])

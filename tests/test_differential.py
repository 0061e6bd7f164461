"""Random nets in every way of running them: a fixed set of seeds, and that faults are found.

``python -m tests.differential --minutes 60`` goes on with other seeds.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import differential  # noqa: E402
from conftest import ROOT  # noqa: E402
from training_jobs import one_thread  # noqa: E402

import kernels.cpu.programs as engine  # noqa: E402
from caffeio import Net  # noqa: E402
from kernels.cpu.engine import layout  # noqa: E402
from pipeline.runtime.packing import PackedWeights  # noqa: E402

#: Seeds of a run of the tests, and how many in one test.
SEEDS, STEP = 320, 20

#: Seeds that found something once.
FOUND = (239,)


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.mark.parametrize("first", range(0, SEEDS, STEP))
def test_all_ways_of_running_random_nets_agree(first: int):
    found = [line for seed in range(first, first + STEP) for line in differential.check(seed)[1]]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "seeds", [range(5000, 5015), pytest.param(range(5015, 5060), marks=pytest.mark.long)]
)
def test_the_engine_touches_nothing_behind_its_buffers(seeds: range):
    """In a process of its own: what touches the page behind a buffer ends it."""
    command = [sys.executable, "-m", "tests.differential", "--guard", "--seeds", *map(str, seeds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "no difference\n"


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_once(seed: int):
    assert not differential.check(seed)[1]


def _found(*checks: Callable[[differential.Case], None]) -> bool:
    """Whether some checks find a difference within the seeds of a run."""
    for seed in range(SEEDS):
        case = differential.Case(differential.random_net(seed))
        for check in checks:
            try:
                check(case)
            except differential.Difference:
                return True
    return False


def test_a_view_that_is_read_as_if_in_order_is_found(monkeypatch: pytest.MonkeyPatch):
    def enter(x: np.ndarray, view: np.ndarray, add: int = 0) -> None:
        flat = np.lib.stride_tricks.as_strided(x, x.shape, _in_order(x.shape))
        layout.enter(flat, view, add)

    monkeypatch.setattr(engine, "enter", enter)
    assert _found(differential.orders)


def _in_order(shape: tuple[int, ...]) -> list[int]:
    return [4 * int(np.prod(shape[i + 1 :])) for i in range(len(shape))]


def test_a_key_that_forgets_what_was_folded_is_found(monkeypatch: pytest.MonkeyPatch):
    right = PackedWeights.of

    class Folded(tuple):
        """What is folded in, of which a key knows only whether there is something."""

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Folded)

        def __hash__(self) -> int:
            return 0

    def of(self: PackedWeights, operands: Any) -> Any:
        folded = operands.affine and Folded(operands.affine)
        return right(self, replace(operands, affine=folded))

    monkeypatch.setattr(PackedWeights, "of", of)
    assert _found(differential.orders)


def test_a_net_cut_by_the_batch_of_its_first_input_is_found(monkeypatch: pytest.MonkeyPatch):
    def splits(net: Net, layers: Any, shapes: Any, results: Any = ()) -> bool:
        values = [v for i in layers for v in (*net.links[i].reads, *net.links[i].writes)]
        return bool(values) and len({shapes[v][:1] for v in values}) == 1

    monkeypatch.setattr("pipeline.runtime.batching.splits", splits)
    assert _found(differential.parts)

"""Steps that count images leave the state that counting the same values in arrays leaves."""

from __future__ import annotations

from typing import Any

import kernel_cases as cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import Histogram, NotFiniteError
from kernels.cpu.codegen.microkernels import choose
from kernels.cpu.engine import counting
from kernels.cpu.engine.layout import enter
from kernels.cpu.engine.steps import Builder
from kernels.dispatch import backend

Shape = tuple[int, int, int, int]


def state(hist: Histogram) -> list[Any]:
    return [array.tolist() for array in hist.to_arrays().values()]


def counted(hist: Histogram, batches: list[np.ndarray], border: tuple[int, int], threads: int):
    """Count batches of one shape by a step, take all at once, and return the number of lines."""
    to = Builder()
    image = to.image(choose("float"), batches[0].shape, border)  # type: ignore[arg-type]
    to.touch(image)
    step = to.count(image)
    assert step is not None
    to.touch(image)
    program, counter = to.program(), hist.counter()
    with program.instance() as instance:
        instance.count([step], [counter])  # type: ignore[list-item]
        for x in batches:
            enter(x, instance.view(image))
            instance.run(0, len(program.steps), threads)
    hist.take(counter)
    assert counter.total == 0


SHAPES = st.tuples(
    st.integers(1, 3), st.sampled_from([1, 16, 33]), st.integers(1, 9), st.sampled_from([32, 57])
).filter(lambda s: s[1] * s[3] >= 512)


@cases.examples(60)
@given(
    SHAPES, st.sampled_from([(0, 0), (1, 0), (0, 2), (1, 1)]), st.sampled_from([1, 2]),
    st.sampled_from([1, 40, 1000]), st.integers(0, 999),
)  # fmt: skip
def test_any_image_and_batches(shape: Shape, border, threads: int, tail: int, seed: int):
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.integers(-3, 4, 5)
    batches = [(rng.standard_normal(shape) * s).astype(np.float32) for s in sizes]
    batches[1] = np.maximum(batches[1], 0)
    found, wanted = Histogram(64, tail), Histogram(64, tail)
    counted(found, batches[:3], border, threads)
    counted(found, batches[3:], border, threads)
    for x in batches:
        wanted.update(x, device="reference")
    assert state(found) == state(wanted)


@pytest.mark.parametrize("threads", [1, 3])
def test_many_values_on_several_threads(threads: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(counting.numba, "get_num_threads", lambda: 3)
    rng = np.random.default_rng(5)
    batches = [rng.standard_normal((1, 64, 90, 90), dtype=np.float32) * s for s in (1, 3)]
    found, wanted = Histogram(), Histogram()
    counted(found, batches, (1, 1), threads)
    for x in batches:
        wanted.update(x)
    assert state(found) == state(wanted)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_said_and_leaves_no_trace(bad: float, threads: int, monkeypatch):
    monkeypatch.setattr(counting.numba, "get_num_threads", lambda: 2)
    rng = np.random.default_rng(5)
    good = rng.standard_normal((1, 64, 90, 90), dtype=np.float32)
    torn = good.copy()
    torn[0, 3, 40, :5] = bad
    hist, wanted = Histogram(tail=9), Histogram(tail=9)
    counted(hist, [good], (0, 0), threads)
    before = state(hist)
    with pytest.raises(NotFiniteError) as caught:
        counted(hist, [good, torn, good], (0, 0), threads)
    assert (caught.value.nans, caught.value.infinities) == ((5, 0) if np.isnan(bad) else (0, 5))
    assert state(hist) == before
    counted(hist, [good], (0, 0), threads)
    for _ in range(2):
        wanted.update(good)
    assert state(hist) == state(wanted)


def test_a_counter_goes_on_after_it_was_taken():
    to = Builder()
    image = to.image(choose("float"), (1, 16, 4, 40))
    to.touch(image)
    step = to.count(image)
    to.touch(image)
    program, hist, wanted = to.program(), Histogram(tail=7), Histogram(tail=7)
    counter = hist.counter()
    assert step is not None
    with program.instance() as instance:
        for i in range(4):
            x = np.random.default_rng(i).standard_normal((1, 16, 4, 40), dtype=np.float32)
            enter(x, instance.view(image))
            instance.count([step], [counter if i != 2 else None])  # type: ignore[list-item]
            instance.run(0, len(program.steps), 1)
            hist.take(counter)
            if i != 2:
                wanted.update(x)
    assert state(hist) == state(wanted)


def test_scattered_values_and_too_many_have_no_step(monkeypatch: pytest.MonkeyPatch):
    to, kernel = Builder(), choose("float")
    image = to.image(kernel, (1, 64, 8, 32))
    assert to.count(image.part(8, 16)) is None  # a slice of the channels
    assert to.count(to.image(kernel, (1, 3, 8, 32), (1, 1))) is None  # lines of 96 values
    monkeypatch.setattr("kernels.cpu.engine.steps.MOST", 100)
    assert to.count(image) is None


def test_only_the_cpu_has_counters():
    assert hasattr(backend("cpu", "programs"), "Counter")

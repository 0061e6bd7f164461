"""IFMR's errors by counting: every sum is exact, wherever values lie beside the edges."""

from __future__ import annotations

import kernel_cases as cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels.cpu import cells, ifmr
from kernels.cpu.cell_edges import BINS, UNITS, find_edges
from kernels.cpu.cells import make_cells
from kernels.dispatch import backend

Ranges = tuple[np.ndarray, np.ndarray, np.ndarray]
RELATIVE = 1e-12


def definition(x: np.ndarray, ranges: Ranges) -> np.ndarray:
    return backend("reference", "ifmr").squared_errors(x, *ranges)


def by_counting(x: np.ndarray, ranges: Ranges) -> np.ndarray | None:
    made = make_cells(*ranges)

    def rest(values: np.ndarray, losses: np.ndarray) -> None:
        losses[:] = definition(values, ranges)

    return None if made is None else made.losses(x, rest)


def ranges_of(low: float, high: float, settings: kernels.Ifmr, bits: int = 8) -> Ranges:
    c = kernels.ifmr_candidates(low, high, settings, bits)
    return c.lows, c.highs, c.scales


RANGES = st.builds(
    ranges_of,
    st.sampled_from([0.0, -1e-4, -0.02, -1.0, -7.7]),
    st.sampled_from([0.0, 0.004, 1.0, 5.3]),
    st.sampled_from(
        [
            kernels.Ifmr(),
            kernels.Ifmr(asymmetric=False),
            kernels.Ifmr(search_range=(0.2, 2.0), search_step=0.07),
            kernels.Ifmr(search_range=(0.9, 1.1), search_step=0.2, asymmetric=False),
        ]
    ),
    st.sampled_from([2, 5, 8]),
)


def values_of(kind: str, size: int, seed: int, ranges: Ranges) -> np.ndarray:
    rng, scales = np.random.default_rng(seed), ranges[2]
    normal = rng.standard_normal(size)
    if kind == "ties":  # half-way between two steps of a candidate, or beside
        steps = np.round(normal * 60) + np.sign(normal) * 0.5
        x = (steps * rng.choice(scales, size)).astype(np.float32)
    elif kind == "steps":
        x = (np.round(normal * 60) * rng.choice(scales, size)).astype(np.float32)
    else:
        spread = {"normal": 1.0, "tiny": 1e-6, "wide": 1e3}[kind]
        x = (normal * spread).astype(np.float32)
    beside = rng.integers(-2, 3, size).astype(np.int32)
    x = (x.view(np.int32) + beside * (x != 0)).view(np.float32)
    x[rng.random(size) < 0.2] = 0
    return x


@cases.examples(150)
@given(
    st.sampled_from(["ties", "steps", "normal", "tiny", "wide"]), RANGES, st.integers(1, 5000),
    st.integers(0, 999),
)  # fmt: skip
def test_losses_are_those_of_the_definition(kind: str, ranges: Ranges, size: int, seed: int):
    x = values_of(kind, size, seed, ranges)
    found = by_counting(x, ranges)
    wanted = definition(x, ranges)
    if found is not None:  # else nothing is returned: digits would have been lost
        np.testing.assert_allclose(found, wanted, rtol=RELATIVE)
    np.testing.assert_allclose(ifmr.squared_errors(x, *ranges), wanted, rtol=RELATIVE)


@cases.examples(60)
@given(st.sampled_from([1e-20, 0.37, 1.0, 2.0, 255.0, 1e20]), st.integers(1, 400))
def test_an_edge_is_the_least_value_that_rounds_up(scale: float, steps: int):
    scales, s = np.array([scale], np.float32), np.float32(scale)
    factor = np.float32(2.0 ** -np.ceil(np.log2(float(s) * steps * 2)) * BINS)
    bins, parts = np.empty((2, steps), np.int32)
    find_edges(np.array([[steps, 0]]), scales, factor, bins, parts)
    edges = ((bins + parts / np.float64(UNITS)) / factor).astype(np.float32)
    below = np.nextafter(edges, np.float32(0))
    halves = np.arange(steps).astype(np.float32) + np.float32(0.5)
    assert (edges / s >= halves).all()
    assert (below / s < halves).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_many_values_are_the_same_for_any_number_of_threads(threads: int, monkeypatch):
    monkeypatch.setattr(cells.numba, "get_num_threads", lambda: threads)
    monkeypatch.setattr(cells, "_MOST", 3 * cells._CHUNK)  # tables are emptied in between
    x = np.random.default_rng(2).standard_normal(900_000, dtype=np.float32)
    ranges = ranges_of(-4.1, 4.2, kernels.Ifmr(search_step=0.05))
    found = by_counting(x, ranges)
    assert found is not None
    np.testing.assert_allclose(found, definition(x, ranges), rtol=RELATIVE)
    alone = make_cells(*ranges)
    assert alone is not None
    monkeypatch.setattr(cells.numba, "get_num_threads", lambda: 3)
    again = by_counting(x, ranges)
    assert (found == again).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [0.0, 1.0, 0.7, 127.5])
def test_data_of_few_values_is_left_to_the_definition(value: float):
    """Losses that are 0 must stay 0, as the first of them wins."""
    x = np.full(300_000, value, np.float32)
    ranges = ranges_of(0.0, 127.5, kernels.Ifmr((0.5, 1.5), 0.1))
    wanted = definition(x, ranges)
    found = ifmr.squared_errors(x, *ranges)
    np.testing.assert_allclose(found, wanted, rtol=RELATIVE)
    assert found.argmin() == wanted.argmin()
    assert ((found == 0) == (wanted == 0)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_leaves_no_finite_loss(bad: float):
    x = np.random.default_rng(1).standard_normal(300_000, dtype=np.float32)
    x[123_456] = bad
    assert not np.isfinite(ifmr.squared_errors(x, *ranges_of(-4, 4, kernels.Ifmr()))).any()


def test_candidates_that_do_not_suit_are_left_to_the_definition():
    lows, highs, scales = ranges_of(-1.0, 2.0, kernels.Ifmr())
    assert make_cells(lows + 2, highs, scales) is None  # zero is outside
    assert make_cells(lows, highs, scales / 97) is None  # far more than 8 bits
    assert make_cells(lows * 0, highs * 0, scales) is None  # nothing but zero
    tiny = np.float32(1e-30)
    assert make_cells(lows * tiny, highs * tiny, scales * tiny) is None

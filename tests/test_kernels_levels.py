"""Few levels for many weights, against every way of choosing them."""

from __future__ import annotations

from itertools import combinations

import kernel_cases as cases
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_kernels_compensation import moments_of

from kernels import best_levels, compensated_rounding, entropy_bits, level_table

DEVICES = cases.DEVICES


def mass_of(values: list[int], weights: list[float]) -> np.ndarray:
    mass = np.zeros(256)
    np.add.at(mass, np.array(values) + 128, weights)
    return mass


def error(values: list[int], weights: list[float], levels: list[int]) -> float:
    pairs = zip(values, weights, strict=True)
    return sum(w * min((v - level) ** 2 for level in levels) for v, w in pairs)


@cases.examples(60)
@given(
    st.lists(st.integers(-128, 127), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
)
def test_no_choice_of_levels_leaves_less(values: list[int], count: int, seed: int):
    """Against all choices among the integers that can be a run's best: those of its mean."""
    weights = np.random.default_rng(seed).integers(1, 9, len(values)).astype(float).tolist()
    levels = best_levels(mass_of(values, weights), count).tolist()
    assert levels == sorted(set(levels))
    assert len(levels) <= count
    ordered = sorted(zip(values, weights, strict=True))
    means = {
        round(sum(v * w for v, w in run) / sum(w for _, w in run))
        for a, b in combinations(range(len(ordered) + 1), 2)
        if (run := ordered[a:b])
    }
    near = sorted({m + d for m in means for d in (-1, 0, 1)})
    least = min(
        error(values, weights, list(some))
        for size in range(1, count + 1)
        for some in combinations(near, min(size, len(near)))
    )
    assert error(values, weights, levels) == pytest.approx(least, abs=1e-9)


def test_few_values_are_kept_as_they_are():
    assert best_levels(mass_of([3, -128, 127], [1, 1, 1]), 16).tolist() == [-128, 3, 127]
    assert best_levels(np.ones(256), 256).tolist() == list(range(-128, 128))
    assert best_levels(mass_of([-5], [1e-30]), 1).tolist() == [-5]
    assert best_levels(mass_of([0, 1], [1, 1e300]), 1).tolist() == [1]


def test_sixteen_levels_of_a_bell_leave_less_than_sixteen_even_steps():
    q = np.clip(np.rint(np.random.default_rng(0).normal(size=100_000) * 32), -128, 127)
    mass = np.bincount(q.astype(int) + 128, minlength=256).astype(float)
    levels = best_levels(mass, 16)
    chosen = level_table(levels)[q.astype(int) + 128]
    even = level_table(np.arange(-120, 128, 16).astype(np.int8))[q.astype(int) + 128]
    assert len(levels) == 16
    assert np.mean((q - chosen) ** 2) < 0.6 * np.mean((q - even) ** 2)


@pytest.mark.parametrize(
    ("mass", "count", "says"),
    [
        (np.zeros(256), 4, "zero everywhere"),
        (np.ones(255), 4, "mass must be 256"),
        (np.full(256, np.nan), 4, "finite"),
        (-np.ones(256), 4, "not negative"),
        (np.ones(256), 0, "count"),
        (np.ones(256), 257, "count"),
    ],
)
def test_wrong_masses_are_refused(mass: np.ndarray, count: int, says: str):
    with pytest.raises(ValueError, match=says):
        best_levels(mass, count)


@given(st.sets(st.integers(-128, 127), min_size=1, max_size=40))
def test_a_table_holds_the_nearest_level(levels: set[int]):
    table = level_table(np.array(sorted(levels), np.int8))
    for value in range(-128, 128):
        want = min(levels, key=lambda level: (abs(value - level), level))
        assert table[value + 128] == want


def test_entropy_is_what_an_ideal_code_needs():
    assert entropy_bits(np.zeros((3, 4), np.int8)) == 0
    assert entropy_bits(np.zeros(0, np.int8)) == 0
    assert entropy_bits(np.arange(-128, 128).astype(np.int8)) == 8 * 256
    q = np.random.default_rng(1).integers(-8, 8, 4096).astype(np.int8)
    values, counts = np.unique(q, return_counts=True)
    assert entropy_bits(q) == pytest.approx(sum(c * np.log2(4096 / c) for c in counts.tolist()))
    assert entropy_bits(q) <= 4 * 4096
    assert len(values) == 16


@cases.examples(40)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 2), st.integers(1, 12), st.integers(1, 9),
    st.sets(st.integers(-128, 127), min_size=1, max_size=16),
)  # fmt: skip
def test_compensated_rounding_to_levels(seed, group, outs, size, levels):
    rng = np.random.default_rng(seed)
    moments = moments_of(rng, 40, group, size)
    w = rng.normal(size=(group, outs, size)).astype(np.float32)
    scales = rng.uniform(0.005, 0.2, (group, outs)).astype(np.float32)
    allowed = np.array(sorted(levels), np.int8)
    q = {d: compensated_rounding(w, scales, moments, levels=allowed, device=d) for d in DEVICES}
    for some in q.values():
        assert set(np.unique(some)) <= levels
        assert (some == q[DEVICES[0]]).all() or "cuda" in q
    h = moments.covariance()
    table = level_table(allowed)
    for g in range(group):
        damping = (0.01 + size / 40) * (np.trace(h[g]) / size or 1.0)
        want = [
            naive.gptq(w[g, o], float(scales[g, o]), h[g], damping, table.tolist())
            for o in range(outs)
        ]
        # a value at a tie may fall to either side by rounding, and others follow
        differ = (q[DEVICES[-1]][g] != np.array(want)).any(axis=1)
        assert differ.sum() <= 0.1 * outs


def test_all_levels_are_no_levels():
    rng = np.random.default_rng(3)
    moments = moments_of(rng, 50, 1, 8)
    w = rng.normal(size=(1, 9, 8)).astype(np.float32)
    scales = np.full((1, 9), 0.02, np.float32)
    every = np.arange(-128, 128).astype(np.int8)
    for device in DEVICES:
        one, two = (
            compensated_rounding(w, scales, moments, levels=levels, device=device)
            for levels in (None, every)
        )
        np.testing.assert_array_equal(one, two)

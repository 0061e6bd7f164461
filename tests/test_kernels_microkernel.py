"""The micro-kernels of the integer product: each fills its tile as whole numbers say."""

from __future__ import annotations

from typing import Any

import kernel_cases as cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.cpu import gemm, microkernel


def has_avx2() -> bool:
    binding = pytest.importorskip("llvmlite.binding")
    return bool(binding.get_host_cpu_features().get("avx2"))


TILES: list[Any] = [
    microkernel.s16s16_tile_6x16_portable,
    pytest.param(
        microkernel.s16s16_tile_6x16_avx2,
        marks=pytest.mark.skipif(not has_avx2(), reason="this processor has no AVX2"),
    ),
]


def expected(data: list, bases: list, taps: list, weights: list) -> list:
    """The sums, in Python integers."""
    return [
        [
            sum(
                data[base + tap + 2 * k + e] * weights[t][k][n][e]
                for t, tap in enumerate(taps)
                for k in range(len(weights[0]))
                for e in range(2)
            )
            for n in range(microkernel.COLUMNS)
        ]
        for base in bases
    ]


@pytest.mark.parametrize("tile", TILES)
@cases.examples(40)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 10**6), st.booleans())
def test_a_tile_equals_whole_numbers(tile: Any, runs: int, pairs: int, seed: int, ends: bool):
    rng = np.random.default_rng(seed)
    data = rng.integers(-255, 256, 200).astype(np.int16)
    weights = rng.integers(-128, 128, (runs, pairs, microkernel.COLUMNS, 2)).astype(np.int16)
    if ends:  # two products of the greatest size in one pair
        data[:], weights[:] = -255, -128
    bases = rng.integers(0, 100, microkernel.ROWS)
    taps = rng.integers(0, 80, runs)
    acc = np.full((microkernel.ROWS, microkernel.COLUMNS), 7, np.int32)
    tile(acc, data, bases, taps, weights)
    lists = (a.tolist() for a in (data, bases, taps, weights))
    assert acc.tolist() == expected(*lists)


@cases.examples(60)
@given(
    st.integers(1, 2), st.integers(1, 40), st.integers(1, 3), st.integers(1, 7), st.integers(1, 20)
)
def test_packed_weights_and_strips_equal_whole_numbers(groups, outs, runs, values, count):
    rng = np.random.default_rng(outs * 1000 + values)
    w = cases.int8s(rng, groups, outs, runs, values)
    packed = gemm.pack_weights(w)
    data = rng.integers(-255, 256, 300).astype(np.int16)
    bases, taps = rng.integers(0, 200, count), rng.integers(0, 80, runs)
    for g in range(groups):
        for block in range(packed.shape[1]):
            acc = np.empty((gemm.COLUMNS, count), np.int32)
            gemm.multiply(data, bases, taps, packed[g, block], acc)
            first = block * gemm.COLUMNS
            for n in range(min(gemm.COLUMNS, outs - first)):
                windows = [[data[b + t : b + t + values] for t in taps] for b in bases]
                want = np.einsum("ptk,tk->p", np.array(windows, int), w[g, first + n])
                assert acc[n].tolist() == want.tolist()

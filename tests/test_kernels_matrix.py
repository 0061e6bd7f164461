"""Products of whole matrices (AMX), where a layer has enough words for them."""

from __future__ import annotations

import kernel_cases as cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels.cpu.codegen.matrix import product_text
from kernels.cpu.codegen.microkernels import all_kernels
from kernels.cpu.codegen.microkernels.choice import VARIABLE, runs_here
from kernels.cpu.codegen.native import assembly
from kernels.cpu.engine.packing import pack_outputs

ISAS = {k.isa for k in all_kernels() if runs_here(k)}


@pytest.mark.parametrize("vectors", [1, 2])
def test_the_machine_code_multiplies_matrices_and_calls_nothing(vectors: int):
    lines = assembly(
        product_text(vectors), "sapphirerapids", "x86_64-unknown-linux-gnu"
    ).splitlines()
    assert sum("tdpbusd" in line for line in lines) == 2 * vectors
    assert not any("call" in line for line in lines)


def test_matrices_are_as_large_as_the_words_of_a_layer_ask():
    """A sum of 63 bytes is left to vectors; of 64 on, whole matrices take it, filled up by zeros."""
    amx = next(k for k in all_kernels() if k.matrix)
    for channels, words in ((1, 1), (60, 15), (61, 16), (64, 16), (65, 32), (130, 48)):
        w = np.ones((1, 20, 1, 1, channels), np.int8)
        packed = pack_outputs(w, 1, np.zeros((1, 20), np.int32), 0, amx)
        assert packed.weights.shape == (1, 1, words, 32, 4)
        assert packed.weights.sum() == 20 * channels


@pytest.mark.skipif("amx" not in ISAS, reason="this processor has no amx")
@cases.examples(40)
@given(
    st.integers(1, 2), st.integers(1, 300), st.integers(1, 70), st.sampled_from([1, 2, 3]),
    st.integers(3, 15), st.integers(1, 2), st.integers(0, 10**6),
)  # fmt: skip
def test_matrices_of_every_size(n, channels, outs, size, image, stride, seed):
    rng = np.random.default_rng(seed)
    x = rng.choice([-128, -1, 0, 3, 127], (n, channels, image, image)).astype(np.int8)
    w = rng.choice([-128, -1, 0, 3, 127], (outs, channels, size, size)).astype(np.int8)
    keywords = {"x_offset": int(rng.integers(-128, 128)), "stride": stride, "pad": size // 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "amx")
        found = kernels.conv2d_int8(x, w, **keywords)
    assert (found == kernels.conv2d_int8(x, w, device="reference", **keywords)).all()
